"""A clip of a corpus: where its sound lies, what is said in it, and where that is written."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Clip"]


@dataclass(frozen=True)
class Clip:
    """One utterance. ``where`` is the file and line (or key) it was read from, ``text`` its transcript or its class.

    ``seconds`` is its length, ``begin_s`` where it starts in its file.
    """

    path: str
    text: str
    where: str
    seconds: float
    begin_s: float = 0.0
