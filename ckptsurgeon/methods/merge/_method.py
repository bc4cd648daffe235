"""A merge method: a function of tensors and parameters that returns a function for merging parts of these tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from ...errors import ConfigError
from ...tensors.ops.regions import Array
from ...util.text import brief_repr, count, escape
from ._slices import Merging, ShapesOnly, Tensors, ValuesNeededError

__all__ = ["BASES", "Between", "Method", "Parameter", "PerModel", "bound", "merge_method"]

# The parameters of a method, read from the signature of its function.


@dataclass(frozen=True)
class Between:
    """The least and the greatest value of a number, both allowed."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if not math.isfinite(self.low):
            return f"{self.high:g} or less"
        return f"from {self.low:g} to {self.high:g}" if math.isfinite(self.high) else f"{self.low:g} or more"


class _Each:
    """Marks the annotation of a parameter that has a value for each model."""


PerModel: TypeAlias = Annotated[Sequence[float], _Each()]
"""A number for each model, in the order of the models."""

_KINDS: dict[Any, str] = {float: "number", int: "whole number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a merge method, as users write it: ``lambda`` for the argument ``lambda_``.

    ``kind`` describes the type of its value; ``default`` is None if a value is required. ``each`` is true if every
    model has its own value; the default in the signature is then a sequence with one value, which is for all models.
    """

    name: str
    kind: str
    default: float | bool | str | None
    each: bool
    bounds: Between
    choices: tuple[str, ...] = ()

    @property
    def argument(self) -> str:
        """The name of the function's argument for this parameter."""
        return f"{self.name}_" if self.name == "lambda" else self.name

    @property
    def wanted(self) -> str:
        """A description of the values that the parameter accepts, for messages: ``a number``."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return self.kind if self.kind == "true or false" else f"a {'string' if self.kind == 'text' else self.kind}"

    def checked(self, value: Any) -> float | bool | str:
        """Return ``value`` in the argument's type; raises ConfigError for a wrong type, or a value out of bounds."""
        if self.kind == "true or false" and isinstance(value, bool):
            return value
        if self.kind == "text" and isinstance(value, str) and (not self.choices or value in self.choices):
            return value
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
        if self.kind == "whole number" and is_number and value == int(value):
            return self._bounded(int(value))
        if self.kind == "number" and is_number:
            return self._bounded(float(value))
        is_a_number = isinstance(value, (int, float)) and not isinstance(value, bool) and "number" in self.kind
        wanted = "a finite number" if is_a_number and not _is_finite(value) else self.wanted
        raise ConfigError(f"the parameter {self.name} is {brief_repr(value, 40)}, not {wanted}.")

    def _bounded(self, value: float) -> float:
        if not self.bounds.low <= value <= self.bounds.high:
            raise ConfigError(f"the parameter {self.name} is {value:g}; it must be {self.bounds}.")
        return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False


def _parameters_of(name: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of the merge method ``name``: the keyword arguments of its function, after the tensors.

    Raises ConfigError for a parameter of unknown type, for one that can be passed by position, or for a default that
    the parameter does not accept.
    """
    hints = get_type_hints(function, include_extras=True)
    found = list(inspect.signature(function).parameters.values())
    if not found or found[0].kind not in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
        raise ConfigError(
            f"the function of the merge method {name} has no argument for the tensors.",
            hint="Give the function a first argument, the Tensors: def method(tensors, *, parameter).",
        )
    for one in found[1:]:
        if one.kind is not one.KEYWORD_ONLY:
            raise ConfigError(
                f"the function of the merge method {name} has a positional parameter {one.name}.",
                hint="Write * before the function's parameters: def method(tensors, *, parameter).",
            )
    return tuple(_parameter(name, one, hints.get(one.name)) for one in found[1:])


def bound(
    method: str, parameters: Sequence[Parameter], given: Mapping[str, Any], models: int
) -> dict[str, float | bool | str | list[float | bool | str]]:
    """Return the arguments for a method's function, from the parameters ``given``, for ``models`` models.

    Missing parameters have their defaults. Raises ConfigError if ``given`` does not fit.
    """
    left, found = dict(given), {}
    for one in parameters:
        name = one.argument if one.argument in left else one.name
        value = left.pop(name, one.default)
        if value is None:
            raise ConfigError(
                f"the merge method {method} needs the parameter {one.name}.", hint=f"Give {one.name}, {_wanted(one)}."
            )
        found[one.argument] = _each(one, value, models) if one.each else one.checked(value)
    if left:
        known = ", ".join(one.name for one in parameters) or "none"
        raise ConfigError(
            f"the merge method {method} has no parameter {escape(', '.join(left))}.", hint=f"It has {known}."
        )
    return found


def _wanted(one: Parameter) -> str:
    return f"{one.wanted} for each model" if one.each else one.wanted


def _each(one: Parameter, value: Any, models: int) -> list[float | bool | str]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * models
    if len(values) != models:
        raise ConfigError(
            f"the parameter {one.name} has {count(len(values), 'value')} for {count(models, 'model')}.",
            hint="Give one value for each model.",
        )
    return [one.checked(each) for each in values]


def _parameter(method: str, one: inspect.Parameter, hint: Any) -> Parameter:
    marks: tuple[Any, ...] = ()
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        marks = (*marks, *more)
    each = any(isinstance(mark, _Each) for mark in marks)
    bounds = next((mark for mark in marks if isinstance(mark, Between)), Between())
    choices = next((mark for mark in marks if isinstance(mark, tuple)), ())
    kind = "number" if each else _KINDS.get(hint)
    if kind is None:
        raise ConfigError(
            f"the function of the merge method {method} has a parameter {one.name} of unknown type.",
            hint="Annotate the parameter as float, int, bool, str or PerModel.",
        )
    default = None if one.default is one.empty else one.default
    if each and default is not None:
        if not isinstance(default, (list, tuple)) or len(default) != 1:
            raise ConfigError(
                f"the default of the parameter {one.name} is {brief_repr(default, 40)}, not a sequence of one value.",
                hint=f"Write one value for all models, as in {one.name}: PerModel = (1.0,).",
            )
        (default,) = default
    made = Parameter("lambda" if one.name == "lambda_" else one.name, kind, default, each, bounds, choices)
    if default is not None:
        made.checked(default)
    return made


# Methods.

BASES = ("none", "optional", "required", "model")
"""The possible roles of a base: "none" (a method has no base), "optional", "required", and "model".

With "model", the base is merged as the first of the models.
"""


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


@dataclass(frozen=True)
class Method:
    """A merge method: its name, its function, its paper, its parameters, and its requirements.

    The other fields are the arguments of ``merge_method``, which describes them. A base counts in ``models`` only if it
    is merged as a model. ``passes`` is for inputs of float32; smaller dtypes need no more. LAPACK factorises: the last
    bits of the results of a method with ``held`` may depend on the processor. ``compared`` also has the largest
    difference, relative to the largest value. Tensors without statistics are averaged or, if the method needs
    statistics of the base, merged by ``task_arithmetic``.
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
        """Return whether the method reads a tensor of this shape as a whole; False for a method that factorises it."""
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
                ShapesOnly(shape, count, has_base, key), **bound(self.name, self.parameters, parameters, count)
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
        return Method(
            name, function, paper, _parameters_of(name, function), base, models, by_rows, passes, elementwise, held,
            compared, statistics, merged_inputs, reads_whole,
        )  # fmt: skip

    return made
