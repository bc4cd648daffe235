"""Parameters as mergekit writes them: values, gradients, and lists of values for some tensors each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...methods.merge._method import Method
from ...methods.merge._parameters import Parameter
from ...util.text import brief_repr
from ..keys.pattern import KeyPattern
from ..merge.values import Setting, Settings
from .fields import at, fault, table, text

__all__ = ["settings", "without_effect"]

IDLE: Mapping[str, tuple[str, ...]] = {"": ("int8_mask",), "task_arithmetic": ("density", "rescale")}
"""What mergekit takes, by method (for all under no name), though it changes nothing."""

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _idle(method: Method, name: str) -> bool:
    """Whether a parameter is one that changes nothing in mergekit either, and that the method has not."""
    return name in (*IDLE[""], *IDLE.get(method.name, ())) and name not in {one.name for one in method.parameters}


def settings(method: Method, where: str, data: Mapping[str, Any]) -> Settings:
    """Return the settings of a map of parameters; raises ConfigError for what mergekit could not read either.

    A value is a scalar; a list of scalars, from the first layer to the last; or ``value`` with ``filter``, a text that
    the tensor's name contains, or with ``keys``, a pattern of ours; or a list of these, of which the first counts that
    matches.
    """
    known = {one.name: one for one in method.parameters}
    return {
        name: _settings(at(where, name), value, known.get(name))
        for name, value in data.items()
        if not _idle(method, name)
    }


def _settings(where: str, data: Any, parameter: Parameter | None) -> list[Setting]:
    if isinstance(data, dict):
        return [_conditional(where, data, parameter)]
    if not isinstance(data, list) or not any(isinstance(one, dict) for one in data):
        return [_plain(where, data, parameter)]
    found = [_conditional(at(where, i), one, parameter) for i, one in enumerate(data)]
    hiding = next((i for i, one in enumerate(found[:-1]) if one.is_for_all), None)
    if hiding is not None:
        raise fault(at(where, hiding), "is for all tensors, so that what follows never counts", "Put it last.")
    return found


def _conditional(where: str, data: Any, parameter: Parameter | None) -> Setting:
    given = table(where, data, ("value", "filter", "keys"), ("value",))
    if "filter" in given and "keys" in given:
        raise fault(where, "has filter and keys", "Give one: keys is a pattern, filter a text that names contain.")
    contains = text(at(where, "filter"), given["filter"]) if "filter" in given else ""
    pattern = KeyPattern.given(text(at(where, "keys"), given["keys"]), "keys: ") if "keys" in given else None
    plain = _plain(at(where, "value"), given["value"], parameter)
    return Setting(plain.value, pattern, layers=plain.layers, contains="" if contains == "*" else contains)


def _plain(where: str, data: Any, parameter: Parameter | None) -> Setting:
    if isinstance(data, list):
        if not data:
            raise fault(where, "is an empty list", "A gradient has a value for the first layer, and more.")
        return Setting(layers=tuple(_scalar(at(where, i), one, parameter) for i, one in enumerate(data)))
    return Setting(_scalar(where, data, parameter))


def _scalar(where: str, data: Any, parameter: Parameter | None) -> float | bool | str:
    """Return a value as its parameter takes it: texts that spell numbers and truths are these, 0 and 1 truths too."""
    if not isinstance(data, (bool, int, float, str)):
        raise fault(where, f"is {brief_repr(data)}, not a number, a text, true or false")
    kind = parameter.kind if parameter is not None else ""
    if kind == "true or false" and not isinstance(data, bool):
        return _TRUTHS.get(str(data).lower().removesuffix(".0"), data)
    if kind in ("number", "whole number") and isinstance(data, str):
        try:
            return float(data)
        except ValueError:
            return data
    return data


def without_effect(method: Method, data: Mapping[str, Any]) -> Sequence[str]:
    """Return the parameters that change nothing."""
    return [name for name in data if _idle(method, name)]
