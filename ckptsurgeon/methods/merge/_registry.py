"""The merge methods there are: those of this folder, and those that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import cast

from ...errors import ConfigError
from ...util.registry import discover
from ...util.text import escape
from ._method import Method

__all__ = ["merge_methods"]


def merge_methods(plugins: Sequence[Method] = ()) -> Mapping[str, Method]:
    """Return every method by its name, those of plugins last; raises ConfigError for two of one name."""
    found = dict(_ours())
    for method in plugins:
        if method.name in found:
            raise ConfigError(f"there are two merge methods {escape(method.name)}.", hint="Rename one.")
        found[method.name] = method
    return found


@cache
def _ours() -> Mapping[str, Method]:
    methods = (one for several in discover(__package__, "METHODS").values() for one in cast(Sequence[Method], several))
    return {method.name: method for method in methods}
