"""A product with a power of two is the same, bit for bit, if only exponents are changed."""

from __future__ import annotations

import numpy as np
import pytest

from ckptsurgeon.errors import PlanError
from ckptsurgeon.tensors.ops import means
from ckptsurgeon.tensors.ops.casts import cast, raw_dtype
from ckptsurgeon.tensors.ops.means import scaled
from ckptsurgeon.tensors.ops.powers import odd_ones, power_of

EVERY = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("power", [-15, -8, -2, -1, 1, 2, 8, 15])
def test_every_value_times_a_power_of_two(dtype: str, power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.errstate(all="ignore"):
        wide = cast(EVERY.view(raw_dtype(dtype)), dtype, "float64")[0] * 2.0**power
        kept = EVERY[~(np.isfinite(wide) & (np.abs(wide) >= {"bfloat16": 3.39e38, "float16": 65520.0}[dtype]))]
    usual = np.delete(kept, odd_ones(kept, dtype, power))
    bits = np.random.default_rng(0).permutation(np.concatenate([kept, np.resize(usual, 32 * len(EVERY) - len(kept))]))
    assert 0 < odd_ones(bits, dtype, power).size < bits.size / means.SHARE
    values = bits.reshape(32, -1).view(raw_dtype(dtype))
    fast = scaled(values, dtype, 2.0**power)
    monkeypatch.setattr(means, "power_of", lambda dtype, factor: None)
    assert fast.tobytes() == scaled(values, dtype, 2.0**power).tobytes()


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 0x7F00), ("float16", 0x7800)])
def test_a_value_that_becomes_infinite_is_an_error(dtype: str, bits: int) -> None:
    values = np.full(1000, 0x3C00, np.uint16)
    values[700] = bits
    assert odd_ones(values, dtype, 1).tolist() == [700]
    with pytest.raises(PlanError, match="1 value times 2 would exceed the range"):
        scaled(values.view(raw_dtype(dtype)), dtype, 2.0)


@pytest.mark.parametrize(
    ("dtype", "factor", "power"),
    [("bfloat16", 0.5, -1), ("float16", 4.0, 2), ("bfloat16", 1.0, 0), ("bfloat16", 0.75, None), ("float16", -2.0, None),
     ("float32", 0.5, None), ("bfloat16", 2.0**-40, None), ("bfloat16", 0.0, None), ("bfloat16", float("inf"), None)],
)  # fmt: skip
def test_only_powers_of_two_near_1(dtype: str, factor: float, power: int | None) -> None:
    assert power_of(dtype, factor) == power
