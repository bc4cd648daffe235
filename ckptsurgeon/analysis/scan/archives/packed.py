"""Unpacks files that are compressed as a whole (gzip, bzip2, xz, lzma, zlib), within limits, and scans them."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Protocol

from ....formats.base.slice import FileSlice
from ....storage.read.base import File
from ..context import ScanItem
from ..findings import Fault

__all__ = ["look_at_packed", "packing_of"]

_STEP = 1 << 20
_FIRST = 512
_MEMORY = 256 << 20
"""The memory limit for xz in bytes; its strongest preset needs 65 MiB."""
_UNSURE = ("zlib", "lzma")
"""Compressions that have no magic number: other data can begin with the same bytes."""
_SMALLEST_WINDOW, _LONGEST_LZMA = 4096, 1 << 38
_JOBLIB = re.compile(rb"ZF\s*(?:0[xX])?[0-9a-fA-F]+[ L]*")
_JOBLIB_HEADER = 21
"""Bytes of the header of joblib before 0.10: ``ZF`` and a length in hexadecimal (joblib/numpy_pickle_compat.py)."""
_NAMED = {b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def packing_of(head: bytes) -> str:
    """Return the compression of a file from its first bytes, such as "gzip"; '' if it is not compressed."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if _JOBLIB.fullmatch(head[:_JOBLIB_HEADER]):
        return "joblib zlib"
    named = next((name for magic, name in _NAMED.items() if head.startswith(magic)), "")
    return named or ("zlib" if _may_be_zlib(head) else "lzma" if _may_be_lzma(head) else "")


def _may_be_zlib(head: bytes) -> bool:
    """Return whether bytes could be a header of zlib without a preset dictionary (RFC 1950, 2.2)."""
    if len(head) < 2 or head[0] & 0x0F != 8 or head[0] > 0x78 or head[1] & 0x20:
        return False
    return int.from_bytes(head[:2], "big") % 31 == 0


def _may_be_lzma(head: bytes) -> bool:
    """Return whether bytes could be the header of an ``.lzma`` file, with a dictionary size that liblzma accepts."""
    if len(head) < 14 or head[0] >= 9 * 5 * 5 or head[13]:
        return False
    window, size = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    whole = window >> (window.bit_length() - 2) << (window.bit_length() - 2) if window >= _SMALLEST_WINDOW else -1
    return window in (whole, 0xFFFFFFFF) and (size < _LONGEST_LZMA or size == 0xFFFFFFFFFFFFFFFF)


def look_at_packed(place: ScanItem, packing: str) -> None:
    """Unpack a compressed file in memory and scan its contents; ``packing`` is the compression, such as "gzip".

    A file with a compression that ckpt cannot unpack, such as 7z, is recorded as unreadable.
    """
    at = len(place.state.found)
    place.add(packing)
    if packing not in _MAKERS:
        place.state.amend(
            at, fault=Fault("unreadable", f"ckpt cannot unpack {packing}: unpack it, and scan the result")
        )
        return
    try:
        data, fault = _unpacked(place, packing)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        data, fault = b"", f"it cannot be unpacked: {error}"
    if fault:
        place.state.amend(at, fault=Fault("corrupt", fault))
    if not place.unpacked(data, "unpacked").judge() and fault and packing in _UNSURE:
        place.state.found.pop(at)


_MAKERS: dict[str, Callable[[], _Unpacker]] = {
    "gzip": lambda: _Zlib(31),
    "zlib": lambda: _Zlib(15),
    "joblib zlib": lambda: _Zlib(15),
    "bzip2": lambda: bz2.BZ2Decompressor(),
    "xz": lambda: lzma.LZMADecompressor(memlimit=_MEMORY),
    "lzma": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY),
}


class _Zlib:
    """A decompressor for zlib with the interface of the decompressors in bz2 and lzma, which keep unused input."""

    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _unpacked(place: ScanItem, packing: str) -> tuple[bytes, str]:
    """Return the unpacked bytes of all compressed streams in a file, and why unpacking failed ('' if it did not)."""
    file, budget, parts = place.file, place.state.budget, bytearray()
    if packing == "joblib zlib":
        begin = _JOBLIB_HEADER + (
            place.head()[_JOBLIB_HEADER : _JOBLIB_HEADER + 1] == b" "
        )  # the length of Python 2 has more digits
        file = FileSlice(file, begin, file.size - begin)
    unpacker, at, waiting, step = _MAKERS[packing](), 0, b"", _FIRST
    while True:
        if not waiting and at < file.size and getattr(unpacker, "needs_input", True):
            waiting = file.read(at, min(step, file.size - at))
            at += len(waiting)
            step = min(2 * step, _STEP)
        try:
            got = unpacker.decompress(waiting, _STEP)
        except (OSError, zlib.error, lzma.LZMAError) as error:
            if not parts:
                raise
            return bytes(parts), f"it can only be unpacked in part: {error}"
        waiting = b""
        budget.take("unpacked", len(got))
        parts += got
        if unpacker.eof:
            unused = getattr(unpacker, "unused_data", b"")
            at -= len(unused)
            if (
                packing in (*_UNSURE, "joblib zlib")
                or at == file.size
                or (unused.startswith(b"\0") and _is_zeros(file, at))
            ):
                return bytes(parts), ""
            budget.take("parts", 1)
            unpacker, step = (
                _MAKERS[packing](),
                _FIRST,
            )  # the first reads are small, so that each tiny stream does not cost a megabyte
        elif not got and at >= file.size:
            return bytes(parts), "it is truncated"


def _is_zeros(file: File, at: int) -> bool:
    """Return whether a file has only zeros from ``at`` to its end, at most 1 MiB: tape archives have such padding."""
    rest = file.size - at
    return rest <= _STEP and not file.read(at, rest).strip(b"\0")
