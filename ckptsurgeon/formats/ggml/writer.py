"""Lays out GGUF files: the metadata, the headers of the tensors, and their bytes, each aligned."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from ...errors import ConfigError, OutputError
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from ..base.header import ExtraEntries, OutTensor
from ..base.limits import TENSORS
from ..base.sharded_writer import OneFile
from .types import NUMBERS
from .values import TEXT, UINT32, Typed, packed

__all__ = [
    "ALIGNMENT",
    "FORMAT_KEY",
    "LARGEST_ALIGNMENT",
    "RECIPE_KEY",
    "RESERVED",
    "SPLIT_COUNT",
    "SPLIT_NUMBER",
    "SPLIT_TENSORS",
    "GgufWriter",
]

ALIGNMENT = "general.alignment"
RECIPE_KEY = "ckptsurgeon.recipe"
"""The key of the metadata entry that holds the recipe."""
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
RESERVED = (RECIPE_KEY, SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS)
"""The entries that ckptsurgeon and llama.cpp's tools set themselves: users cannot set them."""
LARGEST_ALIGNMENT = 1 << 20
_VERSION = 3
_NAME_BYTES = 63
_DIMENSIONS = 4
"""The limits of llama.cpp: names have fewer than 64 bytes, tensors at most four dimensions."""
FORMAT_KEY = "format"
"""The key of the entry ``"format": "pt"`` of safetensors files, which is not copied into GGUF."""


class _GgufLayout:
    """The layout of a file: its header, and the offset of each tensor."""

    def __init__(self, tensors: Sequence[OutTensor], entries: Mapping[str, Typed], recipe: Sequence[str]) -> None:
        self._entries, self._has_recipe = entries, bool(recipe)
        self._tensors, alignment = tensors, GgufWriter.alignment
        if ALIGNMENT in entries:
            alignment = int.from_bytes(entries[ALIGNMENT].raw, "little")
            is_valid = 0 < alignment <= LARGEST_ALIGNMENT and not alignment & (alignment - 1)
            if entries[ALIGNMENT].kind != UINT32 or not is_valid:
                raise ConfigError(
                    f"{ALIGNMENT} must be a power of two up to {LARGEST_ALIGNMENT}, with the type uint32.",
                    hint="Set another value.",
                )
        offsets, at = [], 0
        for tensor in tensors:
            offsets.append(at)
            at += -(-tensor.nbytes // alignment) * alignment
        self._infos = b"".join(_info(tensor, offset) for tensor, offset in zip(tensors, offsets, strict=True))
        size = sum(map(len, self._head(recipe)))
        start = -(-size // alignment) * alignment
        self._padding = bytes(start - size)
        self.slots = {t.key: (start + at, t.nbytes) for t, at in zip(tensors, offsets, strict=True)}
        self.size = start + at

    def _head(self, recipe: Sequence[str]) -> Iterator[bytes]:
        number = len(self._entries) + self._has_recipe
        yield b"GGUF" + struct.pack("<IQQ", _VERSION, len(self._tensors), number)
        for key, (kind, raw) in self._entries.items():
            yield packed(TEXT, key) + struct.pack("<I", kind)
            yield raw
        if self._has_recipe:
            pieces = [piece.encode("utf-8", "replace") for piece in recipe]
            yield packed(TEXT, RECIPE_KEY) + struct.pack("<IQ", TEXT, sum(map(len, pieces)))
            yield from pieces
        yield self._infos

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of all bytes outside the tensors: the header, and the padding after each tensor."""
        at = 0
        for part in chain(self._head(recipe), [self._padding]):
            yield at, part
            at += len(part)
        for tensor in self._tensors:
            begin, nbytes = self.slots[tensor.key]
            if begin > at:
                yield at, bytes(begin - at)
            at = begin + nbytes
        if self.size > at:
            yield at, bytes(self.size - at)


def _info(tensor: OutTensor, offset: int) -> bytes:
    """Return the header of a tensor; raises OutputError for a name or shape that llama.cpp cannot read."""
    try:
        name = tensor.key.encode()
    except UnicodeEncodeError:
        raise OutputError(
            f"GGUF cannot store the name {escape(tensor.key)}: it is not valid Unicode.",
            hint="Rename the tensor with ckpt rename --map, or use --to pth.",
        ) from None
    if len(name) > _NAME_BYTES:
        raise OutputError(
            f"the name {escape(tensor.key)} is too long for GGUF: llama.cpp reads names of at most {_NAME_BYTES} "
            "bytes of UTF-8.",
            hint="Rename the tensors as llama.cpp does (ckpt rename --map), or write safetensors: -o FILE.safetensors.",
        )
    if len(tensor.shape) > _DIMENSIONS:
        raise OutputError(
            f"the tensor {escape(tensor.key)} has {len(tensor.shape)} dimensions: GGUF has at most {_DIMENSIONS}.",
            hint="Write safetensors: -o FILE.safetensors.",
        )
    shape, block = tensor.shape, DTYPES[tensor.dtype].block
    if block is not None:
        shape = (*shape[:-1], shape[-1] // block[1] * block[0])
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return packed(TEXT, name) + sizes + struct.pack("<IQ", NUMBERS[tensor.dtype], offset)


class GgufWriter:
    """Writes GGUF files of version 3."""

    name = "gguf"
    sharding = OneFile("gguf")
    suffixes = (".gguf",)
    shares = False
    most = TENSORS
    dtypes = frozenset(NUMBERS)
    carries = True
    alignment = 32
    """The alignment of tensors in bytes, unless the entry ``general.alignment`` says otherwise."""

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _GgufLayout:
        """Return the layout of a file with the tensors in the given order.

        ``beside`` has the metadata entries with their types; if it is None, the strings in ``metadata`` are written.
        Raises ConfigError for entries that GGUF cannot store, or for an alignment that is not valid; OutputError for
        tensors that llama.cpp cannot read.
        """
        if beside is not None:
            if not all(isinstance(entry, Typed) for entry in beside.levels[0].values()):
                raise ConfigError(
                    "GGUF cannot store entries other than tensors and metadata.", hint="Write one .pth file."
                )
            return _GgufLayout(tensors, beside.levels[0], recipe)
        texts = {key: Typed(TEXT, packed(TEXT, value)) for key, value in metadata.items() if key != FORMAT_KEY}
        return _GgufLayout(tensors, texts, recipe)
