"""A note on a tokenizer.json that writes spaces of a text with another character than its tokens have.

Byte-level BPE writes a space as Ġ, and each byte of other characters as a letter; sentencepiece writes a space as ▁. A
tokeniser that was loaded with a class of the other kind and saved again has tokens of one kind and steps of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....util.text import count
from ..folder import ModelFolder
from .tokenizer_files import WHOLE, brief_token, local_tokens

__all__ = ["space_notes"]

STEPS = ("normalizer", "pre_tokenizer")
BYTES, SPACES = "Ġ", "▁"
SHARE = 20
"""Of one token in so many at least, the first character shows how a tokeniser writes spaces."""


def space_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if the tokens have another character for a space than the normaliser and pre-tokeniser write."""
    head = folder.tokenizer_head
    if not folder.has_all_tokens or head.keys().isdisjoint(STEPS):
        return
    steps = {kind for name in STEPS for kind in _kinds(head.get(name))}
    tokens = local_tokens(folder)
    found = {mark: [token for token in tokens if token[:1] == mark != token] for mark in (BYTES, SPACES)}
    bytes_, spaces = found[BYTES], found[SPACES]
    if len(bytes_) * SHARE > len(tokens) and not spaces and "ByteLevel" not in steps:
        others = ", ".join(sorted(steps)) or "none"
        yield (
            f"{WHOLE} has byte-level tokens ({brief_token(bytes_[0])}, and {len(bytes_) - 1} more), but no step of it "
            f"is ByteLevel ({others}): spaces and other characters are lost or become wrong tokens"
        )
    elif len(spaces) * SHARE > len(tokens) and not bytes_ and "ByteLevel" in steps:
        yield (
            f"{WHOLE} has {count(len(spaces), 'token')} that begin{'s' if len(spaces) == 1 else ''} with {SPACES}, but "
            f"its ByteLevel step writes a space as {BYTES}: words become other tokens"
        )


def _kinds(step: Any) -> Iterator[str]:
    """Yield the ``type`` of a normaliser or pre-tokeniser, and those of the steps in a sequence."""
    if isinstance(step, dict):
        if isinstance(step.get("type"), str):
            yield step["type"]
        for value in step.values():
            for one in value if isinstance(value, list) else ():
                yield from _kinds(one)
