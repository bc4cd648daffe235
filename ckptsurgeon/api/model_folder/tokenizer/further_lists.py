"""Notes on token lists that are not the model's main one: of a target language, of entities, of bytes, of a decoder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ....util.text import count, escape
from ..folder import ModelFolder
from ..weights.shape_checks import DescribedTensor
from .tokenizer_files import object_in

__all__ = ["further_list_notes"]

SETTINGS = "tokenizer_config.json"
DECODER = r"(^|\.)decoder\.embed_tokens\.weight$"
LISTS = {
    "target_vocab.json": DECODER, "vocab-tgt.json": DECODER, "vocab-src.json": r"(^|\.)encoder\.embed_tokens\.weight$",
    "entity_vocab.json": r"(^|\.)entity_embeddings\.entity_embeddings\.weight$",
}  # fmt: skip
"""Token lists of Marian (``separate_vocabs``), FSMT and LUKE, each with a pattern of the key of its embedding."""
BYTES, BYTE_IDS, EXTRA = "ByT5Tokenizer", 259, 125
"""ByT5 has no token list: its ids are three special tokens, 256 bytes, and ``extra_ids`` (by default 125)."""
SHARED = r"(^|\.)shared\.weight$"
ALPHABET, CTC = "alphabet.json", r"^lm_head\.weight$"
"""The labels of pyctcdecode, with which Wav2Vec2ProcessorWithLM decodes the output layer."""


def further_list_notes(tensors: Sequence[DescribedTensor], folder: ModelFolder) -> Iterator[str]:
    """Yield a note for each further token list with ids beyond the rows of its embedding or output layer."""
    for name, pattern in LISTS.items():
        ids = [value for value in object_in(folder, name).values() if type(value) is int]  # several names may share one
        yield from _beyond(name, 1 + max(ids, default=-1), tensors, pattern)
    settings = object_in(folder, SETTINGS)
    if settings.get("tokenizer_class") == BYTES:
        extra = settings.get("extra_ids", EXTRA)
        number = BYTE_IDS + extra if type(extra) is int else 0
        yield from _beyond(f"{BYTES} ({SETTINGS})", number, tensors, SHARED)
    labels = object_in(folder, ALPHABET).get("labels")
    yield from _beyond(ALPHABET, len(labels) if isinstance(labels, list) else 0, tensors, CTC)


def _beyond(what: str, number: int, tensors: Sequence[DescribedTensor], pattern: str) -> Iterator[str]:
    own = next((one for one in tensors if len(one.shape) == 2 and re.search(pattern, one.key)), None)
    if own is not None and number > own.shape[0]:
        yield f"{what} has ids up to {number - 1}, but {escape(own.key)} has {count(own.shape[0], 'row')}"
