"""Names of special tokens in the token lists of speech recognisers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["BLANKS", "SPACES", "first_of"]

BLANKS = ("<blank>", "<blk>", "<pad>", "[PAD]", "<ctc_blank>")
"""Names of the CTC blank in the toolkits, the most likely first."""
SPACES = (" ", "<space>", "|")
"""Tokens between words: Coqui STT, ESPnet, wav2vec2."""


def first_of(names: Iterable[str], tokens: Collection[str]) -> str | None:
    """Return the first of ``names`` that is in ``tokens``; None if none is."""
    return next((name for name in names if name in tokens), None)
