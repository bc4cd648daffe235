"""A merge method: a function of whole tensors that returns a function for merging any part of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ...util.brief import Brief
from ._parameters import Parameter, bound, parameters_of

__all__ = ["BASES", "Merging", "Method", "Slice", "Tensors", "ValuesNeededError", "merge_method"]

T = TypeVar("T")

BASES = ("none", "optional", "required", "model")
"""The role of a base: "none", "optional", "required", or "model": the base is merged as a model too.

As a model it is the first one.
"""


@dataclass(frozen=True, repr=False)
class Slice(Brief):
    """A part of the tensors to merge: values that are contiguous in memory, the same part of each tensor.

    ``models`` and ``base`` are float32, or float64 if that is the dtype of computation, of one shape. ``offset`` counts
    the elements before it, row-major; ``index`` the slices before it. ``xp`` is the Python array API of their library
    (https://data-apis.org/array-api/2024.12/): numpy's, or torch's on a device.
    """

    models: tuple[Array, ...]
    base: Array | None
    offset: int
    index: int
    xp: ModuleType

    @property
    def deltas(self) -> tuple[Array, ...]:
        """The difference of each model to the base, or the models if there is no base."""
        return tuple(self.delta(model) for model in range(len(self.models)))

    def delta(self, model: int) -> Array:
        """Return the difference of a model to the base, or the model if there is no base."""
        return self.models[model] if self.base is None else self.models[model] - self.base

    def wide(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return arrays in double precision."""
        return tuple(self.xp.asarray(one, dtype=self.xp.float64) for one in arrays)

    def onto(self, delta: Array) -> Array:
        """Return the base plus ``delta``, computed in place; ``delta`` itself if there is no base."""
        if self.base is not None:
            delta += self.base
        return delta


class Tensors(Protocol):
    """The tensors of one name in all models, of one shape, read slice by slice."""

    key: str
    shape: tuple[int, ...]
    count: int
    """The number of models, without the base."""
    has_base: bool

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return the result of ``look`` for each slice, in order: one pass over the values, several slices at once.

        The slices are the same in every pass, and in the merge itself.
        """
        ...

    def whole(self) -> Slice:
        """Return everything in one slice; it is an error if that needs more memory than allowed."""
        ...

    def uniform(self, at: Slice, model: int) -> Array:
        """Return a random number in [0, 1) for each element of a slice, or of a part of one, in its shape.

        It depends only on the seed, key, model and position: the slice's offset, and that within the slice.
        """
        ...


Elementwise: TypeAlias = bool | Callable[[Mapping[str, Any]], bool]
"""Whether each element of the result depends only on those at its position; or a function of all parameters."""

ByRows: TypeAlias = bool | Callable[[tuple[int, ...], Mapping[str, Any]], bool]
"""Whether slices have whole rows; or a function of a shape and all parameters, by name, that returns this."""


class ValuesNeededError(Exception):
    """A method needs values that have not been read yet."""


@dataclass(frozen=True)
class _ShapesOnly:
    """Tensors with a known shape, but without values."""

    shape: tuple[int, ...]
    count: int
    has_base: bool
    key: str = ""

    def map(self, look: Callable[[Slice], Any]) -> list[Any]:
        raise ValuesNeededError

    def whole(self) -> Slice:
        raise ValuesNeededError

    def uniform(self, at: Slice, model: int) -> Array:
        raise ValuesNeededError


Merging: TypeAlias = Callable[[Slice], Array]
"""Returns the merged values of a slice, in the slice's shape."""


@dataclass(frozen=True)
class Method:
    """A merge method: its name, its function, its paper, and its requirements.

    ``base`` is one of ``BASES``; ``models`` the least and the most models it merges, without the base unless that
    is merged as one. ``by_rows`` asks for slices with whole rows (all of the last dimension), always or for some
    shapes and parameters. ``passes`` is the most passes over float32 tensors, including the merge itself.
    ``elementwise`` promises that each element of the result depends only on those at its position, always or for some
    parameters: many small tensors are then merged at once.
    """

    name: str
    function: Callable[..., Merging | Array]
    paper: str
    parameters: tuple[Parameter, ...]
    base: str = "none"
    models: tuple[int, int | None] = (1, None)
    by_rows: ByRows = False
    passes: int = 1
    elementwise: Elementwise = False

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def needs_others(self) -> bool:
        """Return whether merging a single model makes no sense; a method for exactly one model may."""
        return self.models[1] != 1

    def wants_rows(self, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
        """Return whether slices of a tensor have whole rows, with these parameters."""
        if isinstance(self.by_rows, bool):
            return self.by_rows and len(shape) > 0
        return self.by_rows(shape, self._all(parameters))

    def is_elementwise(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether each element of the result depends only on those at its position, with these parameters."""
        return self.elementwise if isinstance(self.elementwise, bool) else self.elementwise(self._all(parameters))

    def _all(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {one.name: parameters.get(one.name, one.default) for one in self.parameters}

    def check(
        self, shape: tuple[int, ...], count: int, parameters: Mapping[str, Any], *, has_base: bool, key: str = ""
    ) -> None:
        """Raise the function's errors for its parameters, before any value is read."""
        with suppress(ValuesNeededError):
            self.function(
                _ShapesOnly(shape, count, has_base, key), **bound(self.name, self.parameters, parameters, count)
            )

    def prepare(self, tensors: Tensors, parameters: dict[str, Any]) -> Merging:
        """Return a function that merges slices; the method first reads the tensors as far as it needs.

        Parameters are given by their own names or their arguments'. Missing ones have their defaults; a single number
        is used for every model. Raises ConfigError for parameters that are not valid, PlanError for impossible merges.
        """
        made = self.function(tensors, **bound(self.name, self.parameters, parameters, tensors.count))
        if callable(made):
            return made
        flat = made.reshape(-1)
        return lambda at: flat[at.offset : at.offset + math.prod(at.models[0].shape)].reshape(at.models[0].shape)


def merge_method(
    name: str,
    *,
    paper: str,
    base: str = "none",
    models: tuple[int, int | None] = (1, None),
    by_rows: ByRows = False,
    passes: int = 1,
    elementwise: Elementwise = False,
) -> Callable[[Callable[..., Merging | Array]], Method]:
    """Turn a function into a merge method.

    Its first argument is ``Tensors``; its keyword arguments are its parameters: their annotations and
    defaults are the schema for the command line, recipes and Python. It returns a function of a
    ``Slice``, or the whole merged array. ``paper`` is its reference, ``passes`` the most passes over the
    tensors: one for each ``map`` and ``whole``, and one for the merge. ``elementwise`` promises
    that each element of the result depends only on those at its position, always or for some parameters. Many small
    tensors are then merged at once.

    Raises ConfigError for a signature that does not give a schema.
    """
    if base not in BASES:
        raise ConfigError(f"the merge method {name} has base {base!r}.", hint=f"Use one of {', '.join(BASES)}.")

    def made(function: Callable[..., Merging | Array]) -> Method:
        return Method(name, function, paper, parameters_of(name, function), base, models, by_rows, passes, elementwise)

    return made
