"""Finds the mark of spaces or word parts in tokens: Ġ of byte-level BPE, ▁ of sentencepiece, or ## of WordPiece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ....vocabulary.huggingface import byte_letters
from ..folder import ModelFolder
from .tokenizer_files import local_tokens

__all__ = ["BYTES", "INSIDE", "SPACES", "Spelling", "spelling_of", "steps_in", "types_in"]

BYTES, SPACES, INSIDE = "Ġ", "▁", "##"
"""The marks: byte-level BPE writes a space as Ġ, sentencepiece as ▁. In WordPiece, a token that continues a word begins
with ##."""
SHARE = 20
"""A token list uses a mark if more than one token in 20 begins with it."""
PARTS = ("normalizers", "pretokenizers", "decoders", "processors")


@dataclass(frozen=True)
class Spelling:
    """The ``tokens`` of a tokenizer.json, its ``mark``, and the ``marked`` tokens, which begin with this mark.

    ``mark`` is "" if the tokens have no mark, or two different marks.
    """

    mark: str = ""
    marked: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


def spelling_of(folder: ModelFolder) -> Spelling:
    """Return the tokens of a folder's tokenizer.json and their mark; empty if this file is missing or remote."""
    tokens = local_tokens(folder) if folder.has_all_tokens else ()
    if not tokens or folder.token_list is None:
        return Spelling()
    if folder.token_list.kind == "WordPiece":
        found = {INSIDE: _beginning(tokens, INSIDE)}
    else:
        found = {mark: _beginning(tokens, mark) for mark in (BYTES, SPACES)}
        if all(found.values()):
            return Spelling(tokens=tokens)
        if not found[SPACES] and folder.token_list.kind == "BPE" and byte_letters().issubset(tokens):
            return Spelling(BYTES, found[BYTES], tokens)
    mark = next((mark for mark, marked in found.items() if len(marked) * SHARE > len(tokens)), "")
    return Spelling(mark, found.get(mark, ()), tokens)


def _beginning(tokens: Sequence[str], mark: str) -> tuple[str, ...]:
    return tuple([one for one in tokens if one.startswith(mark) and one != mark])


def steps_in(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the single steps of a normaliser, pre-tokeniser, decoder or post-processor; sequences may be nested."""
    if isinstance(step, dict):
        inner = next((step[name] for name in PARTS if isinstance(step.get(name), list)), None)
        if inner is None:
            yield step
        for one in inner or ():
            yield from steps_in(one)


def types_in(step: Any) -> tuple[str, ...]:
    """Return the types of the single steps of a normaliser, pre-tokeniser, decoder or post-processor, sorted."""
    return tuple(sorted({str(one.get("type")) for one in steps_in(step)}))
