"""A merge method: a function of tensors that returns a function for merging any part of these tensors."""

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
"""The possible roles of a base: "none" (a method has no base), "optional", "required", and "model".

With "model", the base is merged as the first of the models.
"""


@dataclass(frozen=True, repr=False)
class Slice(Brief):
    """A part of the tensors to merge: the same contiguous range of elements of each model's tensor.

    ``models`` and ``base`` have the same shape. They are float32, or float64 if that is the dtype of computation.
    ``offset`` is the number of elements before the slice (row-major), ``index`` is the number of slices before it.
    ``xp`` is the array library, numpy or, on a device, torch, with the functions of
    https://data-apis.org/array-api/2024.12/. ``statistics`` has the Fisher information of each model's elements, if the
    method uses it.
    """

    models: tuple[Array, ...]
    base: Array | None
    offset: int
    index: int
    xp: ModuleType
    statistics: tuple[Array, ...] = ()

    @property
    def deltas(self) -> tuple[Array, ...]:
        """The values of each model minus the values of the base; the models themselves if there is no base."""
        return tuple(self.delta(model) for model in range(len(self.models)))

    def delta(self, model: int) -> Array:
        """Return the values of the model with the index ``model`` minus the base, or its own values without a base."""
        return self.models[model] if self.base is None else self.models[model] - self.base

    def wide(self, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return the arrays in double precision."""
        return tuple(self.xp.asarray(one, dtype=self.xp.float64) for one in arrays)

    def onto(self, delta: Array) -> Array:
        """Return the base plus ``delta``, computed in the memory of ``delta``; ``delta`` itself if there is no base."""
        if self.base is not None:
            delta += self.base
        return delta


class Tensors(Protocol):
    """The tensors that all models have under one name, with the same shape; they are read slice by slice."""

    key: str
    shape: tuple[int, ...]
    count: int
    """The number of models, without the base."""
    has_base: bool
    xp: ModuleType
    """The array library, numpy or torch."""
    is_transposed: bool
    """Whether the rows of the tensors, not the columns, belong to a layer's inputs; False without statistics."""

    def map(self, look: Callable[[Slice], T]) -> list[T]:
        """Return the result of ``look`` for each slice of the tensors, in order; all values are read once for this.

        Several slices are processed at once. The slices are the same in every pass, and in the merge itself.
        """
        ...

    def whole(self) -> Slice:
        """Return the whole tensors as one slice; raises PlanError if they need more memory than is allowed."""
        ...

    def gram(self, model: int, expert: int = 0) -> Array:
        """Return the Gram matrix of the inputs of a model's layer, divided by their number, in double precision.

        If the tensor stacks the weights of experts, it is the matrix of the inputs of one of them.
        """
        ...

    def magnitudes(self) -> Array:
        """Return the mean magnitude of each input of the base's layer, in double precision."""
        ...

    def uniform(self, at: Slice, model: int) -> Array:
        """Return random numbers in [0, 1), in the shape of ``at``, which is a slice or a part of a slice.

        Each number depends only on the seed, the key, the model and the position of the element in the tensor.
        """
        ...


Elementwise: TypeAlias = bool | Callable[[Mapping[str, Any]], bool]
"""Whether each element of the result depends only on the inputs' elements at its position.

This may be a function of all parameters, by name, that returns a bool."""

ByRows: TypeAlias = bool | Callable[[tuple[int, ...], Mapping[str, Any]], bool]
"""Whether slices must have whole rows; or a function of a shape and all parameters, by name, that returns a bool."""

Held: TypeAlias = Callable[[tuple[int, ...], int, int, Mapping[str, Any]], int]
"""A function that returns how many bytes of memory a method needs to factorise a whole tensor.

0 if it does not factorise. Its arguments are the shape of the tensor, the number of inputs (the models and the base),
the bytes of an element in the dtype of computation, and all parameters, by name.
"""

ReadsWhole: TypeAlias = Callable[[tuple[int, ...], Mapping[str, Any]], bool]
"""A function of a shape and all parameters, by name, that returns whether a tensor is read as a whole."""


class ValuesNeededError(Exception):
    """Raised when a merge method asks for values while only its parameters are checked."""


@dataclass(frozen=True)
class _ShapesOnly:
    """Tensors with a shape but without values: with them, a method's parameters are checked before anything is read."""

    shape: tuple[int, ...]
    count: int
    has_base: bool
    key: str = ""
    is_transposed: bool = False
    xp: Any = None

    def map(self, look: Callable[[Slice], Any]) -> list[Any]:
        raise ValuesNeededError

    def whole(self) -> Slice:
        raise ValuesNeededError

    def gram(self, model: int, expert: int = 0) -> Array:
        raise ValuesNeededError

    def magnitudes(self) -> Array:
        raise ValuesNeededError

    def uniform(self, at: Slice, model: int) -> Array:
        raise ValuesNeededError


Merging: TypeAlias = Callable[[Slice], Array]
"""A function that returns the merged values of a slice, in the slice's shape."""


@dataclass(frozen=True)
class Method:
    """A merge method: its name, its function, its paper, and its requirements.

    ``base`` is "none", "optional", "required", or "model" (the base is merged as the first model). ``models`` are the
    least and the greatest number of models that it merges; a base counts only if it is merged as a model. ``by_rows``
    asks for slices with whole rows (all of the last dimension), always or for some shapes and parameters. ``passes`` is
    how often an input of float32 is read at most, including for the merge itself; smaller dtypes need no more.
    ``elementwise`` promises that each element of the result depends only on the inputs' elements at its position,
    always or for some parameters: many small tensors are then merged at once. ``held`` returns the memory of a method
    that factorises whole matrices, with LAPACK: the last bits of its results may depend on the processor. ``compared``
    names the implementation that the tests compare with, and the largest difference, relative to the largest value.
    ``statistics`` is the kind of statistics that it needs: "fisher" or "gram" of each model, "magnitudes" of the base,
    or "" for none. ``merged_inputs`` says that the Gram matrices are of the inputs that layers get in the merged model.
    Tensors without statistics are averaged or, if the method needs statistics of the base, merged by
    ``task_arithmetic``. ``reads_whole`` says which tensors are read as a whole, although they are not factorised.
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
    held: Held | None = None
    compared: str = ""
    statistics: str = ""
    merged_inputs: bool = False
    reads_whole: ReadsWhole | None = None

    @property
    def summary(self) -> str:
        """What the method returns: the first line of the docstring of its function."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def measures_base(self) -> bool:
        """Whether the method needs statistics of the base, not of the models."""
        return self.statistics == "magnitudes"

    @property
    def needs_others(self) -> bool:
        """Whether the method merges several models: False only for a method that takes exactly one model."""
        return self.models[1] != 1

    def wants_rows(self, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
        """Return whether slices of a tensor must have whole rows, with these parameters."""
        if isinstance(self.by_rows, bool):
            return self.by_rows and len(shape) > 0
        return self.by_rows(shape, self._all(parameters))

    def is_elementwise(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether, with these parameters, an element of the result depends only on elements at its position."""
        return self.elementwise if isinstance(self.elementwise, bool) else self.elementwise(self._all(parameters))

    def bytes_held(self, shape: tuple[int, ...], inputs: int, itemsize: int, parameters: Mapping[str, Any]) -> int:
        """Return the bytes of memory that the method needs to factorise a whole tensor; 0 if it merges slices."""
        return 0 if self.held is None else self.held(shape, inputs, itemsize, self._all(parameters))

    def is_read_whole(self, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> bool:
        """Return whether the method reads a tensor of this shape as a whole, without factorising it."""
        return self.reads_whole is not None and self.reads_whole(shape, self._all(parameters))

    def _all(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        return {one.name: parameters.get(one.name, one.default) for one in self.parameters}

    def check(
        self, shape: tuple[int, ...], count: int, parameters: Mapping[str, Any], *, has_base: bool, key: str = ""
    ) -> None:
        """Raise the errors that the method raises for wrong parameters or a wrong shape; no value is read for this.

        ``count`` is the number of models, ``key`` the tensor's name in messages.
        """
        with suppress(ValuesNeededError):
            self.function(
                _ShapesOnly(shape, count, has_base, key), **bound(self.name, self.parameters, parameters, count)
            )

    def prepare(self, tensors: Tensors, parameters: dict[str, Any]) -> Merging:
        """Return a function that merges slices; the method may already read values of the tensors in this call.

        Parameters may have the names that users write (``lambda``) or the names of the arguments (``lambda_``). Missing
        parameters have their defaults; a single number is used for every model. Raises ConfigError for parameters that
        are not valid, PlanError for impossible merges.
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
    held: Held | None = None,
    compared: str = "",
    statistics: str = "",
    merged_inputs: bool = False,
    reads_whole: ReadsWhole | None = None,
) -> Callable[[Callable[..., Merging | Array]], Method]:
    """Return a decorator that turns a function into the merge method ``name``.

    The function's first argument is ``Tensors``. Its keyword arguments are the parameters; their annotations and
    defaults are the schema for the command line, recipes and Python. The function returns a function of a ``Slice``, or
    the whole merged array.

    ``paper`` is the reference of the method. ``base`` is "none", "optional", "required", or "model" (the base is merged
    as the first model). ``models`` are the least and the greatest number of models. ``by_rows`` asks for slices with
    whole rows (all of the last dimension). ``passes`` is how often the tensors are read at most: once for each ``map``
    and ``whole``, and once for the merge. ``elementwise`` promises that each element of the result depends only on the
    inputs' elements at its position: many small tensors are then merged at once. ``by_rows`` and ``elementwise`` may
    also be functions, if they are true only for some parameters. ``held`` returns the bytes of memory of a method that
    factorises whole matrices (see ``Held``). ``compared`` names the implementation that its results were compared with.
    ``statistics`` is the kind of statistics that the method needs. For "fisher" (the Fisher information of each
    element, in each slice) and "gram" (the Gram matrix of the inputs of a layer), each model has statistics; the method
    then has no base, and a parameter ``weight`` for each model. For "magnitudes" (the mean magnitudes of the inputs of
    a layer), the required base has statistics; the method then has the parameters ``weight`` and ``lambda``.
    ``merged_inputs`` asks for Gram matrices of the inputs that layers get in the merged model. ``reads_whole`` says for
    which tensors the function calls ``whole`` without factorising them, so that their memory is known before anything
    is read.

    Raises ConfigError if the function's signature does not define parameters as described.
    """
    if base not in BASES:
        raise ConfigError(
            f"the merge method {name} has the unknown base {base!r}.", hint=f"Use one of {', '.join(BASES)}."
        )

    def made(function: Callable[..., Merging | Array]) -> Method:
        parameters = parameters_of(name, function)
        return Method(
            name,
            function,
            paper,
            parameters,
            base,
            models,
            by_rows,
            passes,
            elementwise,
            held,
            compared,
            statistics,
            merged_inputs,
            reads_whole,
        )

    return made
