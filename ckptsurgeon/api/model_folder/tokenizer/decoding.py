"""Notes on a tokenizer.json whose decoder leaves the marks of its tokens in texts: Ġ, ▁, ## or <0x41>."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....vocabulary.huggingface import BYTE
from ..folder import ModelFolder
from .spelling import BYTES, INSIDE, SPACES, Spelling, steps_in, types_in
from .text_settings import OF_ENCODERS
from .tokenizer_files import WHOLE, brief_token

__all__ = ["decoding_notes", "joins"]

KNOWN = frozenset((
    "BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece",
))  # fmt: skip
"""The types of decoder steps in the library tokenizers. A step of another type may remove marks."""
READ = {BYTES: "ByteLevel", SPACES: "Metaspace", INSIDE: "WordPiece"}
"""{mark: decoder step that removes it, or turns it into a space}"""
SAID = {BYTES: "write spaces as Ġ", SPACES: "write spaces as ▁", INSIDE: "mark the continuation of a word with ##"}


@notes_of(NoteKind.VOCABULARY)
def decoding_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield notes if decoded texts keep the marks of the tokens, or tokens for bytes.

    A tokeniser without a decoder gets no note if it is WordPiece, or if its model is an encoder, which writes no texts.
    """
    head, mark = folder.tokenizer_head, spelling.mark
    yield from _bytes_apart(folder, spelling)
    if "decoder" not in head or not spelling.marked or joins(head["decoder"], mark):
        return
    types = types_in(head["decoder"])
    if not types and (mark == INSIDE or folder.config.get("model_type") in OF_ENCODERS):
        return
    has = f"the decoder of {WHOLE} is {', '.join(types)}" if types else f"{WHOLE} has no decoder"
    keep = f"decoded texts keep this mark, as in {brief_token(spelling.marked[0])}"
    yield f"{has}, but its tokens {SAID[mark]}: {keep}"


@notes_of(NoteKind.VOCABULARY)
def _bytes_apart(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if rare characters are encoded as byte tokens, but the decoder does not join the bytes."""
    decoder, found = folder.tokenizer_head.get("decoder"), folder.token_list
    types = types_in(decoder)
    if found is None or found.model.get("byte_fallback") is not True or not types or not KNOWN.issuperset(types):
        return
    first = next((one for one in spelling.tokens if BYTE.fullmatch(one)), "")
    if first and "ByteFallback" not in types:
        yield (
            f"{WHOLE} writes characters that it lacks as tokens for bytes, but its decoder, {', '.join(types)}, has no "
            f"ByteFallback: decoded texts have {brief_token(first)} and the like instead of these characters"
        )


def joins(decoder: Any, mark: str) -> bool:
    """Return whether a decoder removes or replaces a mark of tokens; also true if it has a step of an unknown type."""
    return any(_reads(step, mark) for step in steps_in(decoder))


def _reads(step: dict[str, Any], mark: str) -> bool:
    kind = str(step.get("type"))
    if kind == READ.get(mark):
        named = step.get({SPACES: "replacement", INSIDE: "prefix"}.get(mark, ""))
        return not isinstance(named, str) or mark in named
    return kind not in KNOWN or mark in str(step.get("pattern", "")) or mark in str(step.get("suffix", ""))
