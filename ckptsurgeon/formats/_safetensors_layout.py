"""Lays out safetensors files: the header, and the order and offsets of the tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

from ..errors import OutputError
from ..util.text import escape
from .base.header import ExtraEntries, OutTensor
from .base.limits import JSON_HEADER_BYTES, TENSORS
from .base.sharded_writer import IndexedShards

__all__ = ["CODES", "METADATA", "RECIPE_KEY", "SafetensorsWriter", "renamed_header", "take_recipe"]

METADATA = "__metadata__"
RECIPE_KEY = "ckptsurgeon"
"""The key of the metadata entry that holds the recipe."""

CODES = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
    "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16",
    "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
    "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
"""{name of a dtype in the format: torch's name}, in the order of the reference implementation.

Tensors of the last dtype in this order are written first.
"""

CHUNK = 4096
"""How many entries of the header are encoded at a time."""

_NAMES = {name: code for code, name in CODES.items()}
_RANK = {name: rank for rank, name in enumerate(CODES.values())}


class _SafetensorsLayout:
    """The layout of a file: the header, padded to a multiple of 8 bytes, and the offset of each tensor."""

    def __init__(self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], recipe: Sequence[str]) -> None:
        self._metadata = dict(metadata)
        self._recipe = bool(recipe)
        ordered = sorted(tensors, key=lambda t: t.key)
        ordered.sort(key=lambda t: _RANK[t.dtype], reverse=True)
        if METADATA in {tensor.key for tensor in tensors}:
            raise OutputError(f"a tensor has the key {METADATA}, which safetensors reserves.", hint="Use --to pth.")
        entries = _entries(ordered)
        # in chunks, so that not all entries are in memory both as str and as bytes
        chunks = iter(lambda: "".join(islice(entries, CHUNK)), "")
        self._entries = [self._encoded(chunk, ordered) for chunk in chunks]
        size = sum(map(len, self._described(recipe)))
        self._padding = b" " * (-size % 8)
        self._size = size + len(self._padding)
        if self._size > JSON_HEADER_BYTES:
            raise OutputError(
                f"the header would have {self._size} bytes; safetensors readers accept at most {JSON_HEADER_BYTES}.",
                hint="Write a folder of shards (-o FOLDER), or use --to pth.",
            )
        at = 8 + self._size
        slots: dict[str, tuple[int, int]] = {}
        for tensor in ordered:
            slots[tensor.key] = (at, tensor.nbytes)
            at += tensor.nbytes
        self.slots: Mapping[str, tuple[int, int]] = slots
        self.size = at

    @staticmethod
    def _encoded(text: str, tensors: Sequence[OutTensor] = ()) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            odd = next((f"the key {escape(one.key)}" for one in tensors if not _is_text(one.key)), "the metadata")
            raise OutputError(
                f"{odd} is not valid Unicode (it has half of a surrogate pair), so safetensors cannot store it.",
                hint="Use --to pth.",
            ) from None

    def _described(self, recipe: Sequence[str]) -> Iterator[bytes]:
        """Yield the JSON text of the header in parts, since the header of a large model has tens of megabytes."""
        if not self._metadata and not self._recipe:
            yield b"{"
            for number, entries in enumerate(self._entries):
                yield entries if number else entries.removeprefix(b",")
            yield b"}"
            return
        yield self._encoded(f'{{"{METADATA}":{_dumps(self._metadata)[:-1]}')
        if self._recipe:
            yield (b"," if self._metadata else b"") + f'"{RECIPE_KEY}":"'.encode()
            for piece in recipe:
                yield self._encoded(_dumps(piece)[1:-1])
            yield b'"'
        yield from (b"}", *self._entries, b"}")

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) of everything but the tensors: the length of the header, then the header in parts."""
        at = 0
        for part in chain([struct.pack("<Q", self._size)], self._described(recipe), [self._padding]):
            yield at, part
            at += len(part)


_dumps = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _entries(tensors: Sequence[OutTensor]) -> Iterator[str]:
    """Yield the header entry of each tensor as JSON, with a comma in front."""
    at = 0
    for tensor in tensors:
        shape = list(tensor.shape)
        if tensor.dtype == "float4_e2m1fn_x2":
            shape[-1] *= 2
        end = at + tensor.nbytes
        sizes = ",".join(map(str, shape))
        said = f'{{"dtype":"{_NAMES[tensor.dtype]}","shape":[{sizes}],"data_offsets":[{at},{end}]}}'
        yield f",{_dumps(tensor.key)}:{said}"
        at = end


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def take_recipe(metadata: dict[str, str]) -> str | None:
    """Remove the recipe from the metadata and return its text; None if there is none.

    The recipe is found even if the key of its entry is damaged.
    """
    for key, value in metadata.items():
        if key == RECIPE_KEY or value.startswith('{"kind":"ckpt.recipe"'):
            return metadata.pop(key)
    return None


def renamed_header(header: bytes, names: Mapping[str, str]) -> tuple[bytes, str]:
    """Return (JSON of a header with renamed tensors and without its recipe, text of the recipe or '').

    ``header`` is the JSON of a valid header. ``names`` maps the old name of each tensor to the new one. Raises
    UnicodeEncodeError for a name that UTF-8 cannot store.
    """
    entries = json.loads(header)
    metadata = entries.pop(METADATA, None) or {}
    recipe = take_recipe(metadata)
    renamed = {names[key]: entry for key, entry in entries.items()}
    return _dumps({**({METADATA: metadata} if metadata else {}), **renamed}).encode(), recipe or ""


class SafetensorsWriter:
    """Lays out safetensors files, with the same bytes as the reference implementation except for the recipe."""

    name = "safetensors"
    sharding = IndexedShards("model", ".safetensors")
    suffixes = (".safetensors",)
    shares = False
    most = TENSORS
    dtypes = frozenset(_NAMES)
    carries = False

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _SafetensorsLayout:
        """Return the layout of a file; tensors are sorted by dtype (larger dtypes first), then by key, without gaps."""
        return _SafetensorsLayout(tensors, metadata, recipe)
