"""The parameters of a merge as people write them: numbers, texts, by model, by pattern, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..keys import KeyPattern
from ..merges import Method
from ..planners import Setting, Settings
from ..text import brief_repr, escape
from ..yamltext import read_yaml

__all__ = ["GRADIENT", "settings_of"]

GRADIENT = "gradient"
"""The name under which values for the first to the last layer stand."""


def settings_of(method: Method, given: Mapping[str, Any] | Sequence[str] | None) -> Settings:
    """Return the settings of parameters.

    A value is a number, a text or true and false; a list where each model has its own; ``{"gradient": [0, 0.5, 1]}``
    for values from the first layer to the last; or a map from patterns to such values, of which the last that matches a
    key wins. Texts are as the command line takes them: NAME=VALUE or NAME:GLOB=VALUE, a gradient in brackets.

    Raises ConfigError for what is none of these, PatternError for a pattern that cannot be understood.
    """
    if not isinstance(given, Mapping):
        found: dict[str, list[Setting]] = {}
        for text in [given] if isinstance(given, str) else given or ():
            name, setting = _from_text(text)
            if setting.pattern is None and any(one.pattern is None for one in found.get(name, ())):
                raise ConfigError(f"{escape(name)} is given twice for all keys.", hint="Leave one out.")
            found.setdefault(name, []).insert(0, setting)
        return found
    each = {one.name for one in method.parameters if one.each}
    return {name: _settings(name, value, by_model=name in each) for name, value in given.items()}


def _settings(name: str, value: Any, *, by_model: bool) -> list[Setting]:
    if isinstance(value, Mapping) and not value:
        raise ConfigError(f"{escape(name)} is a map of nothing.", hint="Give values by pattern, or leave it out.")
    if isinstance(value, Mapping) and set(value) != {GRADIENT}:
        pairs = [(KeyPattern(_pattern(name, text)), one) for text, one in value.items()]
        return [_setting(name, one, by_model=by_model, pattern=pattern) for pattern, one in reversed(pairs)]
    return [_setting(name, value, by_model=by_model)]


def _pattern(name: str, text: object) -> str:
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{escape(name)} has {brief_repr(text, 40)} where a pattern of keys should be.")
    return text


def _setting(name: str, value: Any, *, by_model: bool, pattern: KeyPattern | None = None) -> Setting:
    if isinstance(value, Mapping) and set(value) == {GRADIENT}:
        return Setting(pattern=pattern, layers=_numbers(name, value[GRADIENT]))
    if isinstance(value, (list, tuple)):
        numbers = _numbers(name, value)
        return Setting(pattern=pattern, models=numbers) if by_model else Setting(pattern=pattern, layers=numbers)
    if not isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"{escape(name)} is {brief_repr(value)}, no value.", hint="Use a number, a text or a list.")
    return Setting(value, pattern)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ConfigError(f"{escape(name)}: {brief_repr(values)} is no list of numbers.")
    for value in values:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"{escape(name)}: {brief_repr(value, 40)} is no number.")
    return tuple(map(float, values))


def _from_text(text: str) -> tuple[str, Setting]:
    """Read ``density=0.5``, ``weight=0.3,0.7``, ``t=[0, 0.5, 1]`` or ``t:layers.*.mlp=0.2``."""
    head, equals, said = text.rpartition("=")
    name, colon, glob = head.partition(":")
    if not (equals and name and said) or (colon and not glob):
        raise ConfigError(
            f"--param {escape(text)} is not NAME=VALUE.", hint="Write density=0.5, or density:GLOB=0.5 for some keys."
        )
    pattern = KeyPattern(glob) if glob else None
    if "," in said and not said.startswith("["):
        values = [_read(name, one) for one in said.split(",")]
        return name, Setting(pattern=pattern, models=_numbers(name, values))
    return name, _setting(name, _read(name, said), by_model=False, pattern=pattern)


def _read(name: str, text: str) -> Any:
    try:
        return float(text) if text.strip()[:1] in "+-.0123456789" else read_yaml(text, f"--param {name}")
    except ValueError:
        return text
