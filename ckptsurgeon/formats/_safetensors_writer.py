"""Lays out safetensors files: the dtypes they know, the order they are written in, the header."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OutputError
from ..text import escape
from ._header import Beside, OutTensor
from ._sharded_writer import Indexed
from .limits import JSON_HEADER_BYTES

__all__ = ["CODES", "RECIPE_KEY", "SafetensorsWriter"]

METADATA = "__metadata__"
RECIPE_KEY = "ckptsurgeon"
"""The metadata entry that holds the recipe."""

CODES = {
    "BOOL": "bool", "F4": "float4_e2m1fn_x2", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
    "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "I16": "int16", "U16": "uint16",
    "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "F32": "float32", "C64": "complex64",
    "F64": "float64", "I64": "int64", "U64": "uint64",
}  # fmt: skip
"""The format's dtypes in the order in which it ranks them; files are written from the last to the first."""

_NAMES = {name: code for code, name in CODES.items()}
_RANK = {name: rank for rank, name in enumerate(CODES.values())}


class _Layout:
    """The header's length is known before its checksums are: they have as many digits as zeros have."""

    def __init__(self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], recipe: str) -> None:
        self._metadata = dict(metadata)
        self._recipe = bool(recipe)
        ordered = sorted(tensors, key=lambda t: t.key)
        ordered.sort(key=lambda t: _RANK[t.dtype], reverse=True)
        self._entries: dict[str, Any] = {}
        if METADATA in {tensor.key for tensor in tensors}:
            raise OutputError(
                f"a tensor is called {METADATA}, which safetensors keeps for itself.", hint="Use --to pth."
            )
        offsets, at = {}, 0
        for tensor in ordered:
            shape = list(tensor.shape)
            if tensor.dtype == "float4_e2m1fn_x2":
                shape[-1] *= 2
            offsets[tensor.key] = at
            self._entries[tensor.key] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": shape,
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        start = len(self._header(recipe))
        self.slots = {t.key: (start + offsets[t.key], t.nbytes) for t in ordered}
        self.size = start + at

    def _header(self, recipe: str) -> bytes:
        metadata = {**self._metadata, RECIPE_KEY: recipe} if self._recipe else self._metadata
        head: dict[str, Any] = {METADATA: metadata} if metadata else {}
        text = json.dumps({**head, **self._entries}, separators=(",", ":"), ensure_ascii=False)
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            odd = next((key for key in self._entries if not _is_text(key)), "the metadata")
            raise OutputError(
                f"{escape(odd)} holds half a character, which safetensors cannot write.", hint="Use --to pth."
            ) from None
        raw += b" " * (-len(raw) % 8)
        if len(raw) > JSON_HEADER_BYTES:
            raise OutputError(
                f"the header would have {len(raw)} bytes; safetensors readers take {JSON_HEADER_BYTES}.",
                hint="Use --to pth, or smaller shards.",
            )
        return struct.pack("<Q", len(raw)) + raw

    def frame(self, checksums: Mapping[str, int], recipe: str) -> list[tuple[int, bytes]]:
        """Return the header, the only bytes that are no tensor's."""
        return [(0, self._header(recipe))]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class SafetensorsWriter:
    """Writes what the reference implementation would write, byte for byte, and the recipe beside it."""

    name = "safetensors"
    sharding = Indexed("model", ".safetensors")
    suffixes = (".safetensors",)
    shares = False
    dtypes = frozenset(_NAMES)
    carries = False

    def layout(
        self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], recipe: str, beside: Beside | None = None
    ) -> _Layout:
        """Lay a file out: larger dtypes first, then by key, without a hole."""
        return _Layout(tensors, metadata, recipe)
