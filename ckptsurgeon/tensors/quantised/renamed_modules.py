"""Renames modules in settings of quantisation, as their weights were renamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .modules import DYNAMIC, EXTRA, GROUPS, IGNORED, SKIPPED, is_section
from .settings import Settings

__all__ = ["renamed_modules"]


def renamed_modules(settings: Settings, names: Callable[[str], Sequence[str]]) -> Settings:
    """Return the settings with modules renamed; regular expressions are not changed.

    ``names`` returns the new names of a module; if it returns none, the module keeps its name.
    """
    found = dict(settings)
    if not isinstance(settings.get("quant_method"), str):
        found = _renamed_keys(settings, lambda name: names(name) if _is_of_module(settings[name]) else ())
    for name, value in settings.items():
        if name == EXTRA and isinstance(value, dict):
            found[name] = _renamed_keys(value, names)
        elif name == DYNAMIC and isinstance(value, dict):
            found[name] = _renamed_keys(value, lambda entry: _with_sign(entry, names))
        elif name in (*SKIPPED, IGNORED) and isinstance(value, list):
            found[name] = _renamed_entries(value, names)
        elif name == GROUPS and isinstance(value, dict):
            found[name] = {
                group: {**one, "targets": _renamed_entries(one["targets"], names)}
                if isinstance(one, dict) and isinstance(one.get("targets"), list)
                else one
                for group, one in value.items()
            }
    return found


def _renamed_keys(given: Mapping[str, Any], names: Callable[[str], Sequence[str]]) -> dict[str, Any]:
    return {new: value for name, value in given.items() for new in names(name) or (name,)}


def _renamed_entries(given: Sequence[Any], names: Callable[[str], Sequence[str]]) -> list[Any]:
    return [new for one in given for new in ((isinstance(one, str) and names(one)) or (one,))]


def _with_sign(entry: str, names: Callable[[str], Sequence[str]]) -> Sequence[str]:
    sign = entry[:2] if entry[:2] in ("+:", "-:") else ""
    return [f"{sign}{name}" for name in names(entry[len(sign) :])]


def _is_of_module(value: object) -> bool:
    return value is False or is_section(value)
