"""Finishes or undoes a ``rename --in-place`` that was interrupted."""

from __future__ import annotations

from ...storage.read.uri import scheme_of
from ...storage.write.headers import settle_interrupted

__all__ = ["settle"]


def settle(path: str) -> list[str]:
    """Finish or undo interrupted changes of headers in ``path``, and return notes; [] if ``path`` is a URL."""
    return [] if scheme_of(path) else settle_interrupted(path)
