"""The merge methods there are: those of this folder, and those that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from ..errors import ConfigError
from ..registry import discover
from ..text import escape
from ._method import Method

__all__ = ["merge_methods"]


def merge_methods(plugins: Sequence[Method] = ()) -> Mapping[str, Method]:
    """Return every method by its name, those of plugins last; raises ConfigError for two of one name."""
    found: dict[str, Method] = {}
    ours = discover(__package__, "METHODS").values()
    for method in (*(one for methods in ours for one in cast(Sequence[Method], methods)), *plugins):
        if method.name in found:
            raise ConfigError(f"there are two merge methods {escape(method.name)}.", hint="Rename one.")
        found[method.name] = method
    return found
