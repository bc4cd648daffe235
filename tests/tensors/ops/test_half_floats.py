"""float16 is converted as NumPy does, to the bit: every value, and what lies beside and between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckptsurgeon.tensors.ops import half_floats
from ckptsurgeon.tensors.ops.half_floats import from_half, to_half

HALVES = np.arange(1 << 16, dtype="<u2")
NORMAL = HALVES[(HALVES & 0x7C00) % 0x7C00 != 0]


def numpys(values: Any, dtype: str) -> Any:
    with np.errstate(all="ignore"):
        return values.astype(dtype)


@pytest.mark.parametrize("share", [1, 16])
def test_every_float16_becomes_the_same_float32(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 also if hardly any value is normal."""
    monkeypatch.setattr(half_floats, "SHARE", share)
    values = np.concatenate([HALVES, *([NORMAL] * 16 if share > 1 else [])]).view("<f2")
    assert np.array_equal(from_half(values).view("<u4"), numpys(values, "<f4").view("<u4"))


@pytest.mark.costly
@pytest.mark.parametrize("share", [1, 16])
def test_floats_are_rounded_alike_beside_every_float16_and_halfway(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_floats, "SHARE", share)
    exact = numpys(HALVES.view("<f2"), "<f4").view("<u4")
    normal = numpys(NORMAL.view("<f2"), "<f4").view("<u4")
    beside = [one + np.uint32(by % (1 << 32)) for one in (exact, normal) for by in (-1, 0, 1, 0x0FFF, 0x1000, 0x1001)]
    often = [] if share == 1 else [normal] * 32
    edges = [np.uint32(one) + np.arange(-9000, 9000).astype("<u4") for one in (0x3880_0000, 0x477F_E000, 0x3300_0000)]
    bits = np.concatenate([*beside, *often, *edges])
    values = np.concatenate([bits, bits ^ np.uint32(0x8000_0000)]).view("<f4")
    with np.errstate(all="ignore"):
        found = to_half(values)
    assert np.array_equal(found.view("<u2"), numpys(values, "<f2").view("<u2"))


def test_shapes_and_strides_are_kept() -> None:
    values = np.random.default_rng(0).standard_normal((96, 200)).astype("<f4")
    for one in (values, values.T, values[::2, ::3], values[:2], values[0, 0]):
        made = to_half(one)
        assert made.shape == one.shape
        assert np.array_equal(made, one.astype("<f2"))
        assert np.array_equal(from_half(made), made.astype("<f4"))
