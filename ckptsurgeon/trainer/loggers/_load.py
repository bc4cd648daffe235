"""Finds loggers by their names."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from typing import cast

from ...errors import ConfigError
from ...util.registry import discover
from ...util.text import brief_repr
from ..config.imports import require_package
from ._logger import Logger

__all__ = ["check_loggers", "find_loggers"]

LOGGERS = "ckptsurgeon.trainer.loggers"


def find_loggers(names: Iterable[str]) -> dict[str, type[Logger]]:
    """Return, by name, the classes of the loggers in ``names``, and of those that are used without being named.

    These are the automatic loggers (``is_automatic``) whose package is installed. Raises ConfigError for a name that no
    logger has.
    """
    known = cast("Mapping[str, type[Logger]]", discover(LOGGERS, "LOGGER"))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Use {' or '.join(known)}."
            raise ConfigError(f"train.loggers: there is no logger {brief_repr(name)}.", hint=hint)
    automatic = [name for name, kind in known.items() if kind.is_automatic and is_installed(kind)]
    return {name: known[name] for name in dict.fromkeys([*automatic, *names])}


def check_loggers(names: Iterable[str]) -> None:
    """Raise ConfigError if a logger in ``names`` does not exist, or if its package cannot be imported."""
    named = tuple(names)
    found = find_loggers(named)
    for name in named:
        require_package(found[name].package, extra=found[name].extra)


def is_installed(kind: type[Logger]) -> bool:
    """Return whether the package of a logger is installed."""
    return importlib.util.find_spec(kind.package) is not None
