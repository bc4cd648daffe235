"""``merge --list-methods``: the merge methods."""

from __future__ import annotations

import os

from ...methods.merge._registry import MergeMethods, load_plugin, merge_methods
from ..inputs.argument_types import Path

__all__ = ["list_methods"]


def list_methods(plugin: Path | None = None) -> MergeMethods:
    """Return the merge methods, including those in the Python file ``plugin``, which is run."""
    return MergeMethods(merge_methods(load_plugin(os.fspath(plugin)) if plugin is not None else ()))
