"""Notes on metadata of a GGUF file that contradict its tensors or its tokens.

The entries are listed in llama.cpp's ``gguf-py/gguf/constants.py``. llama.cpp derives the shapes of tensors from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...planning.llama_cpp.model_types import DEFAULTS, MODEL_TYPES
from ...planning.llama_cpp.names import ARCHITECTURES, DEEPSEEK
from ...tensors.dtypes import BLOCKS
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import count, escape, listing
from .block_tensors import is_whole_model, lacking_notes

__all__ = ["metadata_notes", "shape_of_values"]

DIGITS = 9
"""Numbers with more digits are not compared."""
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
EMBEDDING = "token_embd.weight"
_REQUIRED = {
    architecture: (
        "block_count",
        "context_length",
        "embedding_length",
        f"attention.layer_norm_{'rms_' if DEFAULTS[name].norm.startswith('rms') else ''}epsilon",
    )
    for name, architecture in MODEL_TYPES.items()
}
"""The metadata entries that llama.cpp needs to load a model, by the model's architecture."""
_POSITIVE = {
    "attention.layer_norm_rms_epsilon": "norms of zeros become NaN",
    "attention.layer_norm_epsilon": "norms of zeros become NaN",
    "rope.freq_base": "the rotary embedding becomes NaN",
    "rope.freq_base_swa": "the rotary embedding becomes NaN",
}
"""{entry whose number must be above 0: the effect of any other number}"""
LARGEST = 0.01
"""The largest plausible epsilon of a norm."""
HEADS, FEW, WIDTH = "attention.head_count", "attention.head_count_kv", "embedding_length"


def metadata_notes(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str], tokens: int) -> tuple[Note, ...]:
    """Return notes on metadata that contradict the tensors or the tokens, and on tensors that the model lacks.

    The number of blocks, the sizes of the first block and the ids of tokens are checked. ``shapes`` has the shape of
    each tensor. ``metadata`` maps the names of entries to their values as strings, '' if they are too long. ``tokens``
    is the number of tokens, 0 if there are none. Sizes are compared for all known architectures except DeepSeek's,
    whose attention differs. Missing tensors are noted unless the file is one of several, or an adapter.
    """
    architecture = metadata.get("general.architecture", "")
    own = f"{architecture}."
    stated = {
        key.removeprefix(own): int(said) for key, said in metadata.items() if key.startswith(own) and _is_number(said)
    }
    sizes = stated if architecture in ARCHITECTURES and architecture != DEEPSEEK else {}
    is_whole = is_whole_model(shapes, metadata)
    return (
        *_of_another(architecture, metadata),
        *(_of_blocks(shapes, architecture, stated.get("block_count")) if is_whole else ()),
        *(lacking_notes(shapes, metadata) if is_whole else ()),
        *(_of_missing(architecture, metadata) if is_whole and any(map(_BLOCK.match, shapes)) else ()),
        *_of_shapes(shapes, architecture, sizes),
        *_of_rotation(architecture, sizes),
        *_of_positive(architecture, metadata),
        *_of_tokens(metadata, tokens, stated.get("vocab_size")),
        *_of_rows(shapes.get(EMBEDDING, ()), architecture, tokens or sizes.get("vocab_size", 0), bool(tokens)),
    )


@notes_of(NoteKind.METADATA_REFUSED)
def _of_another(architecture: str, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield a note if the entries belong to another architecture than ``general.architecture``."""
    others = {name for name in ARCHITECTURES if f"{name}.block_count" in metadata}
    if others and architecture in ARCHITECTURES and architecture not in others:
        of = " and ".join(sorted(others))
        said = f"general.architecture is {architecture}, but the entries are those of {of}"
        yield f"{said}: llama.cpp cannot load the file"


@notes_of(NoteKind.METADATA_REFUSED)
def _of_missing(architecture: str, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield a note on entries that llama.cpp needs, but the metadata lack.

    There is no note if the entries in the file belong to another architecture.
    """
    lost = [one for name in _REQUIRED.get(architecture, ()) if (one := f"{architecture}.{name}") not in metadata]
    if lost and not any(f"{name}.block_count" in metadata for name in ARCHITECTURES if name != architecture):
        yield f"the metadata lack {listing(lost, where='')}, which llama.cpp needs: llama.cpp cannot load the file"


@notes_of(NoteKind.METADATA_REFUSED)
def _of_rows(shape: Sequence[int], architecture: str, number: int, is_of_tokens: bool) -> Iterator[str]:
    """Yield a note if the embedding of a known architecture does not have ``number`` rows.

    ``shape`` is the shape of the embedding. If ``is_of_tokens`` is true, ``number`` is the number of tokens in the
    file, otherwise the value of the entry ``vocab_size``. It is 0 if neither is known; then there is no note.
    """
    if architecture in ARCHITECTURES and len(shape) == 2 and number and shape[0] != number:
        has = f"the file has {count(number, 'token')}" if is_of_tokens else f"{architecture}.vocab_size is {number}"
        yield f"{EMBEDDING} has {count(shape[0], 'row')}, but {has}: llama.cpp cannot load the file"


@notes_of(NoteKind.VOCABULARY)
def _of_tokens(metadata: Mapping[str, str], tokens: int, stated: int | None) -> Iterator[str]:
    ids = (key for key in metadata if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"))
    beyond = [f"{key} is {metadata[key]}" for key in ids if _is_number(metadata[key]) and int(metadata[key]) >= tokens]
    beyond += [f"{metadata['general.architecture']}.vocab_size is {stated}"] if stated not in (None, tokens) else []
    if tokens and beyond:
        yield f"the file has {count(tokens, 'token')}, but {listing(beyond, where='')}"


def shape_of_values(dtype: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a stored tensor, counted in values.

    If the tensor has blocks of codes, the last number in ``shape`` counts bytes; it is converted.
    """
    if dtype not in BLOCKS or not shape:
        return tuple(shape)
    values, nbytes = BLOCKS[dtype]
    return (*shape[:-1], shape[-1] // nbytes * values)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS


@notes_of(NoteKind.METADATA_REFUSED)
def _of_blocks(keys: Iterable[str], architecture: str, stated: int | None) -> Iterator[str]:
    numbers = {int(found[1]) for key in keys if (found := _BLOCK.match(key)) is not None}
    if not numbers or stated is None:
        return
    lost = next((number for number in range(stated) if number not in numbers), None)
    if lost is None and max(numbers) < stated:
        return
    has = f"the blocks go up to {max(numbers)}" if lost is None else f"block {lost} has no tensors"
    whole = len(numbers) == max(numbers) + 1
    remedy = f" (--set-metadata {escape(architecture)}.block_count={len(numbers)})" if whole else ""
    yield f"{escape(architecture)}.block_count is {stated}, but {has}: llama.cpp cannot load the file{remedy}"


@notes_of(NoteKind.METADATA)
def _of_shapes(shapes: Mapping[str, Sequence[int]], architecture: str, sizes: Mapping[str, int]) -> Iterator[str]:
    for key, axis, entries, wanted in _wanted(sizes):
        shape = shapes.get(key, ())
        if len(shape) == 2 and shape[axis] != wanted:
            said = " and ".join(f"{escape(architecture)}.{entry} {sizes[entry]}" for entry in entries if entry in sizes)
            yield f"with {said}, {key} must have {wanted:,} {('rows', 'columns')[axis]}, but it has {shape[axis]:,}"


@notes_of(NoteKind.METADATA_REFUSED)
def _of_rotation(architecture: str, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if a rotary embedding of llama rotates only a part of each head: llama.cpp refuses this."""
    head = sizes.get("attention.key_length") or sizes.get(WIDTH, 0) // (sizes.get(HEADS, 0) or 1)
    turned = sizes.get("rope.dimension_count", head)
    if architecture == "llama" and head and turned != head:
        yield f"llama.rope.dimension_count is {turned}, but a head has {head} values: llama.cpp cannot load the file"


@notes_of(NoteKind.METADATA)
def _of_positive(architecture: str, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield a note on each number that must be above 0, but is not, and on epsilons of norms that are too large.

    There are no notes for unknown architectures.
    """
    for entry, why in _POSITIVE.items() if architecture in ARCHITECTURES else ():
        said = metadata.get(f"{architecture}.{entry}", "")
        if said and entry.endswith("epsilon") and LARGEST < _value(said) < math.inf:
            yield f"{architecture}.{entry} is {escape(said, 40)}, but epsilons of norms are {LARGEST:g} or less"
        if said and not _value(said) > 0:
            yield f"{architecture}.{entry} is {escape(said, 40)}, which is not above 0: {why}"


def _value(text: str) -> float:
    """Return the number in a text; NaN for "nan", infinity for a text without a number."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def _wanted(sizes: Mapping[str, int]) -> Iterator[tuple[str, int, tuple[str, ...], int]]:
    """Yield (key, axis, entries, size) for each size of a tensor that the metadata determine.

    Axis ``axis`` of the tensor ``key`` must have the size ``size``; ``entries`` are the names of the metadata entries
    from which it follows. ``sizes`` maps the names of metadata entries to their values.
    """
    width, heads = sizes.get(WIDTH, 0), sizes.get(HEADS, 0)
    if width:
        yield EMBEDDING, 1, (WIDTH,), width
    if "feed_forward_length" in sizes:
        yield "blk.0.ffn_down.weight", 1, ("feed_forward_length",), sizes["feed_forward_length"]
    if width and heads:
        few, each = (FEW, sizes[FEW]) if FEW in sizes else (HEADS, heads), width // heads
        yield "blk.0.attn_q.weight", 0, *_rows("key", (HEADS, heads), each, sizes)
        yield "blk.0.attn_k.weight", 0, *_rows("key", few, each, sizes)
        yield "blk.0.attn_v.weight", 0, *_rows("value", few, each, sizes)


def _rows(kind: str, heads: tuple[str, int], each: int, sizes: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Return (entries, rows): the number of rows that an attention projection must have, and the entries that give it.

    ``kind`` is "key" or "value". ``heads`` is the name and the value of the entry with the number of heads. The number
    of rows of a head is in an entry of ``sizes``; if there is no such entry, it is ``each``.
    """
    entry, number = heads
    length = f"attention.{kind}_length"
    if length in sizes:
        return (entry, length), number * sizes[length]
    return tuple(dict.fromkeys((WIDTH, HEADS, entry))), number * each
