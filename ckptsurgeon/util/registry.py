"""Finds the plug-ins in a package: its public modules that define a given attribute, such as ``FORMAT``.

A contributor adds a format, a source or a destination configuration by adding one file; there is no list to extend.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType

__all__ = ["discover", "module_names", "modules", "plugin"]


@cache
def module_names(package: str, *, with_packages: bool = True) -> tuple[str, ...]:
    """Return the names of a package's public modules, and of packages in it, sorted, without importing them."""
    found = importlib.import_module(package)
    every = [one for one in pkgutil.iter_modules(found.__path__) if with_packages or not one.ispkg]
    return tuple(sorted(one.name for one in every if not one.name.startswith("_")))


def modules(package: str) -> Iterator[ModuleType]:
    """Import and yield the public modules of a package, in the order of their names."""
    for name in module_names(package):
        yield importlib.import_module(f"{package}.{name}")


def plugin(package: str, name: str, attribute: str) -> object:
    """Import the module ``name`` of a package and return its ``attribute``; None if it has none."""
    return getattr(importlib.import_module(f"{package}.{name}"), attribute, None)


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
