"""``--set KEY=VALUE``: fields of the ``train:`` section, given where a run is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...storage.yaml_text import read_yaml
from ...util.text import escape
from .section import check_section

__all__ = ["apply_overrides"]


def apply_overrides(section: Any, sets: Sequence[str]) -> Any:
    """Return a ``train:`` section with ``KEY=VALUE`` in it: dotted keys, values in YAML.

    Raises ConfigError for a text that is none, and for a field nobody knows.
    """
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path or not all(path.split(".")):
            raise ConfigError(f"--set {escape(text)} is not KEY=VALUE.", hint="As in --set lr=1e-3.")
        flag = f"--set {escape(text)}"
        names = path.removeprefix("train.").split(".")
        check_section(_nested(names, _value(value, flag)), flag)
        section = _merged({} if section is None else section, _nested(names, _value(value, flag)))
    return section


def _value(text: str, flag: str) -> Any:
    return read_yaml(f"value: {text}\n", flag)["value"]


def _nested(names: Sequence[str], value: Any) -> dict[str, Any]:
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def _merged(old: Any, new: Mapping[str, Any]) -> Any:
    """Return ``old`` with the values of ``new``; sections are merged, everything else is replaced."""
    if not isinstance(old, Mapping):
        return old  # no section: settings_of says so
    merged = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both and name in ("data", "features") else value
    return merged
