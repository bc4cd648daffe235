"""Imports each public name of a package at its first use, so that a command loads only what it needs."""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["public_names"]


def public_names(package: str, file: str) -> tuple[list[str], Callable[[str], Any]]:
    """Return the ``__all__`` and the ``__getattr__`` of a package whose public names are listed in a stub file.

    ``package`` and ``file`` are the ``__name__`` and the ``__file__`` of the package. The stub is ``__init__.pyi`` in
    the package's folder. It consists of statements ``from .module import name as name``, which may list several names
    in brackets.
    """
    home_of: dict[str, str] = {}
    home = ""
    with open(file + "i", encoding="utf-8") as stub:
        for line in stub:
            if line.startswith("from "):
                home, _, line = line[len("from ") :].partition(" import ")
            elif not line.startswith(" "):
                home = ""
            if home:
                home_of.update((one.split(" as ")[-1].strip(), home) for one in line.split(",") if " as " in one)

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(home_of[name], package), name)
        setattr(sys.modules[package], name, found)
        return found

    return sorted(home_of), find
