"""Finishes or undoes a ``rename --in-place`` that was interrupted."""

from __future__ import annotations

from ...storage.header_journals import journals_of
from ...storage.read.uri import scheme_of

__all__ = ["settle"]


def settle(path: str) -> list[str]:
    """Finish or undo interrupted changes of headers in ``path``, and return notes; [] if ``path`` is a URL."""
    if scheme_of(path) or not journals_of(path)[1]:
        return []
    from ...storage.write.headers import settle_interrupted  # takes long to import

    return settle_interrupted(path)
