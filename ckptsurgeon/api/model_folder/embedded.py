"""Reads the configuration and the token list inside a GGUF file, and makes notes on differences between two files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from ...checkpoint.checkpoint import Checkpoint
from ...formats.base.header import StoredEntry
from ...formats.ggml.values import TEXT, texts_in
from ...storage.read.base import File
from ...util.text import escape

__all__ = ["TEMPLATE", "TOKENS", "EmbeddedModel", "embedded_model", "embedded_notes", "entry_notes", "other_template"]

ARCHITECTURE = "general.architecture"
TOKENS = "tokenizer.ggml.tokens"
TEMPLATE = "tokenizer.chat_template"
IGNORED = (
    "block_count", "context_length", "embedding_length", "expert_count", "expert_feed_forward_length",
    "expert_shared_feed_forward_length", "feed_forward_length", "leading_dense_block_count", "vocab_size",
)  # fmt: skip
"""Names (without the architecture) of metadata entries that do not change what weights of the same shapes compute."""
DEFAULTS = {
    "attention.sliding_window": "0", "rope.freq_base": "10000.0", "rope.scaling.factor": "1.0",
    "rope.scaling.type": "none",
}  # fmt: skip
"""{entry: value that llama.cpp uses if a file lacks it}; other entries are compared only if both files have them."""
OF_TEXTS = (
    "model", "pre", "merges", "scores", "token_type", "add_bos_token", "add_eos_token", "add_space_prefix",
    "remove_extra_whitespaces",
)  # fmt: skip
"""Entries that decide how a text is split into tokens; their names begin with ``tokenizer.ggml.``."""
UNSAID = "not set"
LONGEST = 60
"""A note shows at most this many characters of a value."""


@dataclass(frozen=True)
class EmbeddedModel:
    """The metadata of a GGUF file: all entries (``stored``), and those with a short value as text (``metadata``).

    ``file`` is the open GGUF file.
    """

    metadata: Mapping[str, str]
    stored: Mapping[str, StoredEntry]
    file: File

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens in the order of their ids, without padding such as [PAD9] at the end; () if there are none."""
        tokens = texts_in(self.raw(TOKENS)) if TOKENS in self.stored else []
        while tokens and tokens[-1] == f"[PAD{len(tokens) - 1}]":
            tokens.pop()
        return tuple(tokens)

    @cached_property
    def chat_template(self) -> str:
        """The chat template of the tokeniser; '' if there is none."""
        entry = self.stored.get(TEMPLATE)
        return self.raw(TEMPLATE)[8:].decode("utf-8", "replace") if entry is not None and entry.kind == TEXT else ""

    def raw(self, key: str) -> bytes:
        """Return the bytes of an entry's value."""
        entry = self.stored[key]
        return self.file.read(entry.offset, entry.nbytes)

    def part(self, key: str, begin: int, number: int) -> bytes:
        """Return up to ``number`` bytes of an entry's value, from position ``begin`` on."""
        entry = self.stored[key]
        return self.file.read(entry.offset + begin, max(0, min(number, entry.nbytes - begin)))

    def digest(self, key: str) -> bytes:
        """Return the SHA-256 of an entry's value; empty if there is no such entry."""
        return hashlib.sha256(self.raw(key)).digest() if key in self.stored else b""

    @property
    def fields(self) -> dict[str, str]:
        """The entries that affect results; their names do not have the architecture (``llama.``) as prefix."""
        own = f"{self.metadata.get(ARCHITECTURE, '')}."
        stated = {key.removeprefix(own): said for key, said in self.metadata.items() if key.startswith(own)}
        return {key: said for key, said in stated.items() if key not in IGNORED}


def embedded_model(checkpoint: Checkpoint) -> EmbeddedModel | None:
    """Return the metadata of a GGUF file; None for another format."""
    stored = checkpoint.header.stored
    if not stored:
        return None
    return EmbeddedModel(checkpoint.metadata, stored, checkpoint.open_files()[checkpoint.files[0].name])


def embedded_notes(models: Sequence[tuple[str, EmbeddedModel | None]], donor: int, read: set[int]) -> Iterator[str]:
    """Yield notes on GGUF sources of a plan whose metadata differ from the output's in a way that changes results.

    ``models`` has (name, metadata) of each source; the metadata are None if the source is not GGUF. The output gets the
    metadata of the source at index ``donor`` or, if this source is not GGUF, of the first GGUF source. ``read`` has the
    indices of the sources whose tensors the plan reads.
    """
    known = {number: (name, model) for number, (name, model) in enumerate(models) if model is not None}
    if not known:
        return
    whose = donor if donor in known else min(known)
    for number, (name, model) in known.items():
        if number != whose and number in read:
            yield from entry_notes(name, model, *known[whose])


def entry_notes(other: str, theirs: EmbeddedModel, name: str, ours: EmbeddedModel) -> Iterator[str]:
    """Yield notes on different metadata in two GGUF files, if they change results for the same weights or texts.

    ``name`` and ``other`` are the names of the models with the metadata ``ours`` and ``theirs``.
    """
    names = escape(other), escape(name)
    pair = [{ARCHITECTURE: one.metadata.get(ARCHITECTURE, UNSAID), **one.fields} for one in (theirs, ours)]
    lines = [
        _line(key, (one, here), names)
        for key in dict.fromkeys((*pair[1], *pair[0]))
        if None not in (one := pair[0].get(key, DEFAULTS.get(key)), here := pair[1].get(key, DEFAULTS.get(key)))
        and not _is_same(str(one), str(here))
    ]
    if lines:
        told = "; ".join(lines)
        yield f"equal weights compute different results, because the metadata of the GGUF files differ: {told}"
    if theirs.digest(TEMPLATE) != ours.digest(TEMPLATE):
        yield from other_template(theirs.chat_template, other, ours.chat_template, name)
    if theirs.digest(TOKENS) != ours.digest(TOKENS):
        return
    keys = [f"tokenizer.ggml.{one}" for one in OF_TEXTS]
    both = [key for key in keys if key in theirs.stored and key in ours.stored]
    others = [
        _line(key, (theirs.metadata.get(key), ours.metadata.get(key)), names)
        for key in both
        if theirs.digest(key) != ours.digest(key)
    ]
    if others:
        told = "; ".join(others)
        yield f"texts are split into different tokens, because the metadata of the GGUF files differ: {told}"


def other_template(one: str, first: str, other: str, second: str) -> Iterator[str]:
    """Yield a note if the chat templates ``one`` and ``other``, of the models ``first`` and ``second``, differ.

    White space at their ends is ignored; there is no note if one of the two is empty.
    """
    there, here = one.strip(), other.strip()
    if there and here and there != here:
        place = next((n for n, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), len(min(there, here)))
        yield f"the chat templates of {escape(first)} and {escape(second)} differ, first at character {place}"


def _line(key: str, pair: tuple[str | None, str | None], names: tuple[str, str]) -> str:
    """Return text on the two values (``pair``) of a metadata entry; long values are not shown."""
    if None in pair:
        return f"{escape(key)} differs between {names[0]} and {names[1]}"
    one, here = (escape(str(value), LONGEST) for value in pair)
    return f"{escape(key)} is {one} in {names[0]}, {here} in {names[1]}"


def _is_same(one: str, here: str) -> bool:
    with suppress(ValueError):
        return float(one) == float(here)
    return one == here
