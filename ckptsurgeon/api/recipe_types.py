"""The types that a recipe's fields must have: those of the verbs' arguments, as YAML spells them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..text import brief_repr, escape

__all__ = ["KINDS", "check_types"]


@dataclass(frozen=True)
class _Kind:
    """What a field should be, in words, and whether a value is that."""

    wanted: str
    holds: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


def _are_maps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_named(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _any_of(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether one of several checks holds, or nothing is said: what may be left out may be left empty."""
    return lambda value: value is None or any(check(value) for check in checks)


KINDS: Mapping[str, _Kind] = {
    "str": _Kind("a text", _is_text),
    "str | None": _Kind("a text", _any_of(_is_text)),
    "str | torch.dtype | None": _Kind("a text", _any_of(_is_text)),
    "bool": _Kind("true or false", lambda value: isinstance(value, bool)),
    "int": _Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float | None": _Kind("a number", _any_of(_is_number)),
    "Sequence[float] | None": _Kind("a list of numbers", _any_of(_are_numbers)),
    "Parameters": _Kind("a map of parameters or a list of texts NAME=VALUE", _any_of(_are_named, _are_texts)),
    "Mapping[str, Path] | Sequence[str]": _Kind(
        "a map of paths or a list of texts MODEL=LIST", _any_of(_is_map, _are_texts)
    ),
    "Mapping[str, str] | None": _Kind("a map of texts", _any_of(_is_map)),
    "Path": _Kind("a path", _is_text),
    "Path | None": _Kind("a path", _any_of(_is_text)),
    "Path | Sequence[Path]": _Kind("a path or a list of paths", lambda value: _is_text(value) or _are_texts(value)),
    "Sequence[Path]": _Kind("a list of paths", _are_texts),
    "Sources": _Kind("a path or a list of paths", lambda value: _is_text(value) or _are_texts(value)),
    "Patterns": _Kind("a pattern or a list of patterns", _any_of(_is_text, _are_texts)),
    "Rules": _Kind("rules FROM=TO or a map of texts", _any_of(_is_text, _are_texts, _is_map)),
    "Operations": _Kind("a path or a list of maps", _any_of(_is_text, _are_maps)),
    "Vocabularies": _Kind("a text SRC:DST or two paths", _any_of(_is_text, _are_texts)),
    "Mismatch": _Kind("a policy, a list of them, or a map of texts", _any_of(_is_text, _are_texts, _is_map)),
}
"""The annotations of the verbs' arguments, as they stand in the code."""


def check_types(name: str, call: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for an argument whose type is not what a verb takes."""
    known = inspect.signature(call).parameters
    for field, value in given.items():
        kind = KINDS.get(known[field].annotation)
        if kind is None or kind.holds(value):
            continue
        _check_complete(name, field, value)
        raise ConfigError(f"{escape(name)}: {field} is {brief_repr(value)}, not {kind.wanted}.")


def _check_complete(name: str, field: str, value: Any) -> None:
    """Refuse ``{module: }`` by name: YAML reads null, and what is meant is an empty text."""
    empty = [key for key, target in value.items() if target is None] if isinstance(value, dict) else []
    if empty:
        key = brief_repr(empty[0])
        raise ConfigError(
            f"{escape(name)}: {field} gives {key} no value.", hint=f"Write '' for nothing, as in {{{key}: ''}}."
        )
