"""The merge methods there are: those of this folder, and those of a user's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import cast

from ..errors import ConfigError
from ..registry import discover
from ..text import escape
from ._method import Method

__all__ = ["load_plugin", "merge_methods"]


def merge_methods(plugins: Sequence[Method] = ()) -> Mapping[str, Method]:
    """Return every method by its name, those of plugins last; raises ConfigError for two of one name."""
    found: dict[str, Method] = {}
    ours = discover(__package__, "METHODS").values()
    for method in (*(one for methods in ours for one in cast(Sequence[Method], methods)), *plugins):
        if method.name in found:
            raise ConfigError(f"there are two merge methods {escape(method.name)}.", hint="Rename one.")
        found[method.name] = method
    return found


def load_plugin(path: str) -> tuple[Method, ...]:
    """Run a file of the user's and return the methods in it; raises ConfigError where it fails or has none.

    It is run because the user names it; no checkpoint and no recipe of a checkpoint can.
    """
    loader = SourceFileLoader("ckptsurgeon_plugin", path)
    module = ModuleType(loader.name)
    try:
        loader.exec_module(module)
    except FileNotFoundError:
        raise ConfigError(f"there is no plugin {escape(path)}.") from None
    except Exception as error:
        raise ConfigError(f"the plugin {escape(path)} fails: {type(error).__name__}: {escape(str(error))}.") from error
    found = tuple(value for value in vars(module).values() if isinstance(value, Method))
    if not found:
        raise ConfigError(f"the plugin {escape(path)} has no merge method.", hint="Decorate one with @merge_method.")
    return found
