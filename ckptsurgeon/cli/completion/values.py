"""The values that options take, where they are known by name."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import fields

__all__ = ["values_of"]

_WORD = re.compile(r"[a-z][a-z0-9_]*")


def values_of(option: str, metavar: str) -> list[str]:
    """Return the values of an option: those its help names (``size|key``), and those of what it is for."""
    named = [word for word in metavar.rpartition("]")[2].split("|") if _WORD.fullmatch(word)]
    found = _KNOWN.get(option if metavar not in ("DTYPE", "keep|DTYPE") else "dtype")
    named_ones = metavar in ("", "FORMAT", "NAME", "[GLOB=]POLICY", "DTYPE", "keep|DTYPE")
    return [*named, *(found() if found is not None and named_ones else ())]


def _formats() -> Iterable[str]:
    from ...api.applying import output_formats

    return sorted(output_formats())


def _policies() -> Iterable[str]:
    from ...planning.mismatch.parse import MISMATCH_POLICIES

    return MISMATCH_POLICIES


def _rulesets() -> Iterable[str]:
    from ...planning.keys.rulesets import RULESETS

    return RULESETS


def _methods() -> Iterable[str]:
    from ...api.merge.merge import list_methods

    return sorted(list_methods().methods)


def _dtypes() -> Iterable[str]:
    from ...tensors.dtypes import DTYPES

    return [name for name, dtype in DTYPES.items() if dtype.is_floating and dtype.values == 1]


def _settings() -> Iterable[str]:
    from ...trainer.config.settings import Settings

    return [one.name for one in fields(Settings)]


def _tasks() -> Iterable[str]:
    """Return the names of the folder's files: to import it takes torch."""
    spec = importlib.util.find_spec("ckptsurgeon.trainer.tasks")
    places = spec.submodule_search_locations if spec is not None else None
    return sorted(one.name for one in pkgutil.iter_modules(places or []) if not one.name.startswith("_"))


_KNOWN: dict[str, Callable[[], Iterable[str]]] = {
    "to": _formats,
    "on_mismatch": _policies,
    "ruleset": _rulesets,
    "method": _methods,
    "dtype": _dtypes,
    "set": _settings,
    "set task": _tasks,
}
