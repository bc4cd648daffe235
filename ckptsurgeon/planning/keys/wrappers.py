"""Removes the names of training wrappers from a single key; ``checkpoint/wrappers.py`` removes them from all keys."""

from __future__ import annotations

import re

__all__ = ["without_wrappers"]

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+|(?<=\.)_orig_mod\.")
"""The wrappers that ``--unwrap`` strips from keys."""


def without_wrappers(key: str) -> str:
    """Return a key without the wrappers that training adds, such as ``module.``."""
    return _WRAPPERS.sub("", key)
