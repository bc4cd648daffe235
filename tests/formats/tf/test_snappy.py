"""Blocks that are compressed with Snappy."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.tf.leveldb import decompress_snappy

from ...helpers.tensorflow_files import HEADER, block, entry, table, varint


def snappy(literal: bytes, *copies: tuple[int, int]) -> bytes:
    """A literal, then copies (offset, length) as the widest kind spells them."""
    body = b"\xf4" + struct.pack("<H", len(literal) - 1) + literal
    for offset, length in copies:
        body += bytes([(length - 1) << 2 | 3]) + struct.pack("<I", offset)
    return varint(len(literal) + sum(length for _, length in copies)) + body


def test_compressed_blocks() -> None:
    rows = block([(b"", HEADER), (b"v", entry([1], 4)), (b"w", entry([1], 4, offset=4))])
    Path("x.data-00000-of-00001").write_bytes(bytes(8))
    Path("x.index").write_bytes(table([(b"w", snappy(rows))], kind=1))
    assert list(cs.open_checkpoint("x")) == ["v", "w"]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"\x03\x08abc", b"abc"),
        (b"\x0a\x04ab\x11\x02", b"ab" * 5),
        (b"\x06\x00a\x12\x01\x00", b"aaaaaa"),
        (b"\x06\x00a\x13\x01\x00\x00\x00", b"aaaaaa"),
        (b"\x40\xf0\x3b" + b"x" * 60 + b"\x0cabcd", b"x" * 60 + b"abcd"),
    ],
)
def test_snappy_of_every_kind(raw: bytes, wanted: bytes) -> None:
    """google/snappy, format_description.txt"""
    assert decompress_snappy(raw, 1000) == wanted


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff" * 6, b"\x03\x08ab", b"\x04\x00a\x12\x02\x00", b"\x04\x00a\x12\x00\x00", b"\x09\x00a", b"\x01\x04ab",
     b"\x05\x00a\x01", b"\x05\x00a\x12\x01", b"\x05\xf8\xff"],
)  # fmt: skip
def test_snappy_that_is_malformed_is_refused(raw: bytes) -> None:
    with pytest.raises(cs.FormatError):
        decompress_snappy(raw, 1000)


def test_what_says_that_it_unpacks_to_gigabytes_is_refused_before_it_does() -> None:
    with pytest.raises(cs.FormatError, match="claims to unpack to 4294967295"):
        decompress_snappy(b"\xff\xff\xff\xff\x0f\x00a", 8 << 20)
    with pytest.raises(cs.FormatError, match="claims to unpack to 8000000"):
        decompress_snappy(varint(8_000_000) + b"\x00a", 8 << 20)
