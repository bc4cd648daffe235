"""The parameters of merge methods, read from their functions' signatures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_args, get_origin, get_type_hints

from ...errors import ConfigError
from ...util.text import brief_repr, count, escape

__all__ = ["Between", "Parameter", "PerModel", "bound", "parameters_of"]


@dataclass(frozen=True)
class Between:
    """The least and the greatest value of a number, both allowed."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
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
        raise ConfigError(f"the parameter {self.name} is {brief_repr(value, 40)}, not {self.wanted}.")

    def _bounded(self, value: float) -> float:
        if not self.bounds.low <= value <= self.bounds.high:
            raise ConfigError(f"the parameter {self.name} is {value:g}; it must be {self.bounds}.")
        return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for float64
        return False


def parameters_of(name: str, function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of the merge method ``name``: the keyword arguments of its function, after the tensors.

    Raises ConfigError for a parameter of unknown type, or for one that can be passed by position.
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
        (default,) = default
    return Parameter("lambda" if one.name == "lambda_" else one.name, kind, default, each, bounds, choices)
