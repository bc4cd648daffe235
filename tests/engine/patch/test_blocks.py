"""Blocks of a patch: whatever two blocks have, the new one comes back; and whatever is damaged is an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptsurgeon as cs
from ckptsurgeon.engine.patch.blocks import Decoder, Encoder

ENCODER, DECODER = Encoder(), Decoder()


def random(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def decoded(data: bytes, old: np.ndarray | None, size: int) -> np.ndarray:
    out = np.zeros(size, np.uint8) if old is None else old.copy()
    DECODER.decode(data, out)
    return out


@given(
    elements=st.integers(1, 300), itemsize=st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    part=st.floats(0, 1), seed=st.integers(0, 999),
)  # fmt: skip
def test_what_was_encoded_comes_back(elements: int, itemsize: int, part: float, seed: int) -> None:
    size, draw = elements * itemsize, np.random.default_rng(seed)
    old = random(size, seed)
    new = np.where(np.repeat(draw.random(elements) < part, itemsize), random(size, seed + 1), old)
    for before in (old, None):
        data = ENCODER.encode(new, before, itemsize)
        assert decoded(data, before, size).tobytes() == new.tobytes()
    assert ENCODER.encode(old, old, itemsize) == b""


@pytest.mark.parametrize(("changed", "most"), [(0, 0), (0.001, 0.003), (0.02, 0.025), (0.2, 0.1), (1, 0.8)])
def test_few_changes_take_little_room(changed: float, most: float) -> None:
    draw = np.random.default_rng(0)
    values = (draw.standard_normal(1 << 20) * 0.02).astype("<f4")
    tuned = np.where(draw.random(values.size) < changed, values * 1.01, values).astype("<f4")
    old, new = ((one.view("<u4") >> 16).astype("<u2").view(np.uint8) for one in (values, tuned))
    assert len(ENCODER.encode(new, old, 2)) <= most * new.size


def test_random_bytes_take_no_more_than_they_have() -> None:
    new = random(1 << 16, 0)
    assert len(ENCODER.encode(new, None, 4)) <= new.size + 18


@pytest.mark.parametrize("part", [0.01, 1.0])
def test_every_byte_that_is_changed_is_an_error_or_another_block(part: float) -> None:
    """The SHA-256 of the file finds what this cannot; here nothing but a FormatError is raised."""
    size = 400
    old = random(size, 0)
    new = np.where(np.random.default_rng(1).random(size) < part, random(size, 2), old).astype(np.uint8)
    data = ENCODER.encode(new, old, 2)
    errors = 0
    for place in range(len(data)):
        for value in {data[place] ^ 1, data[place] ^ 128, 0, 255} - {data[place]}:
            try:
                decoded(data[:place] + bytes((value,)) + data[place + 1 :], old, size)
            except cs.FormatError:
                errors += 1
    assert errors > 10
    for end in range(1, len(data)):
        with pytest.raises(cs.FormatError):
            decoded(data[:end], old, size)
    with pytest.raises(cs.FormatError):
        decoded(data + b"\0\0\0\0", old, size)


def test_a_stream_that_claims_to_be_huge_is_not_unpacked() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    data = bytes((0, 1)) + len(bomb).to_bytes(4, "little") + bomb
    with pytest.raises(cs.FormatError, match="cannot be decoded"):
        decoded(data, None, 1000)
