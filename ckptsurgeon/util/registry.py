"""Finds the plug-ins in a package: its public modules that define a given attribute, such as ``FORMAT``.

A contributor adds a format, a source or a destination configuration by adding one file; there is no list to extend.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType

__all__ = ["discover", "module_names", "modules"]


@cache
def module_names(package: str) -> tuple[str, ...]:
    """Return the names of a package's public modules, sorted, without importing them."""
    found = importlib.import_module(package)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_")))


def modules(package: str) -> Iterator[ModuleType]:
    """Import and yield the public modules of a package, in the order of their names."""
    for name in module_names(package):
        yield importlib.import_module(f"{package}.{name}")


@cache
def discover(package: str, attribute: str) -> dict[str, object]:
    """Return the value of ``attribute`` in each public module of ``package``, by module name.

    Modules without the attribute are helpers, and are left out.
    """
    return {
        module.__name__.rpartition(".")[2]: getattr(module, attribute)
        for module in modules(package)
        if hasattr(module, attribute)
    }
