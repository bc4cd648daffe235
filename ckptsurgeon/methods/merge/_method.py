"""What a merge method is: a function of whole tensors that says how to merge any part of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar

from ...errors import ConfigError
from ...tensors.ops.boxes import Array
from ...util.brief import Brief
from ._parameters import Parameter, bound, parameters_of

__all__ = ["BASES", "LookError", "Merging", "Method", "Slice", "Tensors", "merge_method"]

T = TypeVar("T")

BASES = ("none", "optional", "required", "model")
"""What a method does with a base: nothing, something if there is one, it needs one, or it merges it as a model too.

Merged as a model, it is the first of them.
"""


@dataclass(frozen=True, repr=False)
class Slice(Brief):
    """A part of the tensors that are merged: values that follow each other in memory, of all of them the same.

    ``models`` and ``base`` are float32, or float64 where that is computed in, of one shape. ``offset`` counts the
    elements before it, row-major; ``index`` the slices before it. ``xp`` is the Python array API of their library
    (https://data-apis.org/array-api/2024.12/): numpy's, or that of torch on a device.
    """

    models: tuple[Array, ...]
    base: Array | None
    offset: int
    index: int
    xp: ModuleType

    @property
    def deltas(self) -> tuple[Array, ...]:
        """What each model adds to the base, or the models where there is none."""
        return tuple(self.delta(model) for model in range(len(self.models)))

    def delta(self, model: int) -> Array:
        """Return what a model adds to the base, or the model where there is none."""
        return self.models[model] if self.base is None else self.models[model] - self.base

    def wide(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return arrays in double precision."""
        return tuple(self.xp.asarray(one, dtype=self.xp.float64) for one in arrays)

    def onto(self, delta: Array) -> Array:
        """Return what is added to the base, added to it, in place; where there is none, as it is."""
        if self.base is not None:
            delta += self.base
        return delta


class Tensors(Protocol):
    """The tensors of one name in all models, of one shape, read slice by slice."""

    key: str
    shape: tuple[int, ...]
    count: int
    """Of models; the base is not counted."""
    has_base: bool

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return what ``look`` gives for each slice, in order: one pass over the values, several slices at once.

        The slices are the same in every pass, and when they are merged.
        """
        ...

    def whole(self) -> Slice:
        """Return everything in one slice: more memory than the budget allows is an error."""
        ...

    def uniform(self, at: Slice, model: int) -> Array:
        """Return a random number in [0, 1) for each element of a slice, or of a part of one, in its shape.

        It is the same for the seed, key, model and place: the slice's offset, and those behind it.
        """
        ...


Elementwise: TypeAlias = bool | Callable[[Mapping[str, Any]], bool]
"""Whether each element of the result is made of those at its own place alone, or what says so of all parameters."""

ByRows: TypeAlias = bool | Callable[[tuple[int, ...], Mapping[str, Any]], bool]
"""Whether slices hold whole rows, or a function of a shape and all parameters, by their names, that says so."""


class LookError(Exception):
    """A method wants to look at values that nobody has read yet."""


@dataclass(frozen=True)
class _Unseen:
    """Tensors of which only the shape is known."""

    shape: tuple[int, ...]
    count: int
    has_base: bool
    key: str = ""

    def map(self, look: Callable[[Slice], Any]) -> list[Any]:
        raise LookError

    def whole(self) -> Slice:
        raise LookError

    def uniform(self, at: Slice, model: int) -> Array:
        raise LookError


Merging: TypeAlias = Callable[[Slice], Array]
"""Returns the merged values of a slice, in its shape."""


@dataclass(frozen=True)
class Method:
    """A merge method: its name, its function, where it comes from, and what it takes.

    ``base`` is one of ``BASES``; ``models`` the least and the most models it merges, the base not counted unless it
    is merged as one. ``by_rows`` asks for slices that hold whole rows (all of the last dimension), always or for some
    shapes and parameters. ``passes`` is how often it goes over float32 tensors at most, when they are merged included.
    ``elementwise`` says that each element of the result is made of those at its own place alone, always or with some
    parameters: small tensors are then merged many at a time.
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
        """Whether one model and nothing else is no merge; a method of one model may stand alone."""
        return self.models[1] != 1

    def wants_rows(self, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
        """Whether slices of a tensor hold whole rows, with these parameters."""
        if isinstance(self.by_rows, bool):
            return self.by_rows and len(shape) > 0
        return self.by_rows(shape, self._all(parameters))

    def is_elementwise(self, parameters: Mapping[str, Any]) -> bool:
        """Whether each element of the result is made of those at its own place alone, with these parameters."""
        return self.elementwise if isinstance(self.elementwise, bool) else self.elementwise(self._all(parameters))

    def _all(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {one.name: parameters.get(one.name, one.default) for one in self.parameters}

    def check(
        self, shape: tuple[int, ...], count: int, parameters: Mapping[str, Any], *, has_base: bool, key: str = ""
    ) -> None:
        """Raise what the function raises of its parameters alone, before it looks at a value."""
        with suppress(LookError):
            self.function(_Unseen(shape, count, has_base, key), **bound(self.name, self.parameters, parameters, count))

    def prepare(self, tensors: Tensors, parameters: dict[str, Any]) -> Merging:
        """Look at the tensors as far as the method needs, and return what merges their slices.

        Parameters go by their own names or their arguments'. What is left out has its default; a number stands for
        the same of each model. Raises ConfigError for what the method does not take, PlanError for what cannot be.
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
    """Make a function a merge method.

    Its first argument are the ``Tensors``; what else it takes, by keyword, are its parameters: their annotations and
    defaults are the schema that the command line, a recipe and Python hold them to. It returns a function of a
    ``Slice``, or the whole merged array. ``paper`` is where it is described, ``passes`` how often it goes over the
    tensors at most: once for each ``map`` and ``whole``, and once when they are merged. ``elementwise`` promises
    that each element of the result is made of those at its own place alone, always or with some parameters. Small
    tensors are then merged many at a time.

    Raises ConfigError for a signature that says no schema.
    """
    if base not in BASES:
        raise ConfigError(f"the merge method {name} has base {base!r}.", hint=f"Use one of {', '.join(BASES)}.")

    def made(function: Callable[..., Merging | Array]) -> Method:
        return Method(name, function, paper, parameters_of(name, function), base, models, by_rows, passes, elementwise)

    return made
