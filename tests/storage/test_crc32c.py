"""The checksum of TensorFlow's blocks and tensors."""

from __future__ import annotations

import numpy as np
import pytest

from ckptsurgeon.storage.crc32c import crc32c, unmasked

from ..helpers.tensorflow_files import masked


def test_checksums() -> None:
    """RFC 3720 B.4, and LevelDB's mask."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert unmasked(masked(0x12345678)) == 0x12345678


@pytest.mark.costly
@pytest.mark.parametrize("length", [4095, 4096, 4097, 65535, 65536, 65541, (1 << 20) + 4099])
def test_a_long_checksum_is_that_of_its_bytes_one_by_one(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    pieces = 0
    for begin in range(0, length, 4000):  # too short for numpy
        pieces = crc32c(data[begin : begin + 4000], pieces)
    assert crc32c(data) == pieces
    assert crc32c(memoryview(data)[1:], crc32c(data[:1])) == pieces
