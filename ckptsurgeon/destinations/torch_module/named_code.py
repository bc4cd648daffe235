"""Imports what a configuration names by ``package.module.thing``, as ``pydoc.locate`` finds it."""

from __future__ import annotations

import importlib.util
import pydoc
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ...errors import ConfigError
from ...util.text import escape
from .._document import Document
from .running import own_file

__all__ = ["imported"]


def imported(document: Document, names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import what a document names, before tensors are watched; returns what ran from where, and own files."""
    places: dict[str, list[str]] = {}
    files: list[str] = []
    for name in dict.fromkeys(names):
        module = _module_of(document, name)
        file = own_file(module)
        document.ran.append(f"the import of {file or module.__name__}")
        places.setdefault(file or module.__name__.partition(".")[0], []).append(name)
        files += [file] if file else []
    ran = tuple(f"{', '.join(names)} from {place}" for place, names in places.items())
    return ran, tuple(dict.fromkeys(files))


def _module_of(document: Document, name: str) -> ModuleType:
    """Return the module that a dotted name lies in, as hyperpyyaml finds it."""
    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise _import_failed(document, name, error.value) from error
    if found is None:
        head = name.partition(".")[0]
        missing = importlib.util.find_spec(head) is None
        why = f"{escape(name)} needs the package {escape(head)}" if missing else f"there is no {escape(name)}"
        raise document.fail(f"{why}.", f"pip install {escape(head)}." if missing else "")
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = pydoc.safeimport(".".join(parts[:end]))
        if module is not None:
            return module
    return importlib.import_module("builtins")


def _import_failed(document: Document, name: str, error: Any) -> ConfigError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return document.fail(f"{escape(name)} needs the package {error.name}.", f"pip install {error.name}.")
    return document.fail(f"importing {escape(name)} failed: {type(error).__name__}: {escape(str(error))}")
