"""Adapters that are added in single precision: how far results of 16 bits may be from exact sums, on any processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.methods.lora import singles
from ckptsurgeon.methods.lora.changing import changing, wide_dtype
from ckptsurgeon.methods.lora.products import LowRankChange, changed
from ckptsurgeon.tensors.ops.casts import cast, widened
from ckptsurgeon.tensors.ops.means import rounded

from ...helpers.adapters import base_state, factors, peft_folder

DTYPES = ["bfloat16", "float16"]
UNIT = 2.0**-24


def change(rank: int, factor: float = 1.0) -> LowRankChange:
    made = np.random.default_rng(0)
    return LowRankChange("product", factor, made.standard_normal((300, rank)), made.standard_normal((rank, 200)))


def bases(dtype: str, rank: int) -> dict[str, Any]:
    """Bases whose sums are of ordinary size, cancel, are zero, are tiny, or lie halfway between two values."""
    plain = np.random.default_rng(1).standard_normal((300, 200))
    product = change(rank).product(0, 300)
    kinds = {"plain": plain, "cancelling": -product, "zero": 0 * plain, "minus zero": -0.0 * np.abs(plain),
             "tiny": plain * 1e-7, "halfway": np.round(plain * 64) / 64 + 2.0**-9 - product}  # fmt: skip
    return {name: cast(values, "float64", dtype)[0] for name, values in kinds.items()}


def single(one: LowRankChange, dtype: str, base: Any) -> Any:
    assert wide_dtype(dtype, [one.kind], dtype) == "float32"
    return changing([one], "float32", dtype)(widened(base, dtype).astype("<f4"), 0)[0]


def exact(one: LowRankChange, dtype: str, base: Any) -> tuple[Any, Any]:
    """The exact sums, and the sums of the magnitudes of all their terms."""
    left, right = one.pair()
    base = widened(base, dtype).astype("<f8")
    return base + one.weight * one.product(0, 300), np.abs(base) + np.abs(one.weight * left) @ np.abs(right)


def farthest(left: Any, right: Any) -> Any:
    """Products that are off as far as those of any BLAS may be."""
    size = np.abs(left.astype("f8")) @ np.abs(right.astype("f8"))
    signs = np.where(np.random.default_rng(2).random(size.shape) < 0.5, 1, -1)
    return (left.astype("f8") @ right.astype("f8") + signs * len(right) * UNIT * size).astype("f4")


def order(values: Any) -> Any:
    """Whole numbers in the order of 16-bit floats: neighbours differ by one."""
    signed = values.view("i2").astype("i8")
    return np.where(signed < 0, -(signed & 0x7FFF), signed)


@pytest.mark.parametrize("kind", bases("bfloat16", 3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "factor"), [(3, 1.0), (3, 1e-30), (64, 1.0), (256, 2.0**-14)])
@pytest.mark.parametrize("blas", ["own", "farthest"])
def test_a_sum_is_off_by_no_more_than_its_bound(
    blas: str, rank: int, factor: float, dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded, it lies between what the sum less its error and the sum plus its error are rounded to."""
    if blas == "farthest":
        monkeypatch.setattr(singles, "multiplied", farthest)
    one, base = change(rank, factor), bases(dtype, rank)[kind]
    found = order(single(one, dtype, base))
    sums, sizes = exact(one, dtype, base)
    error = (rank + 4) * UNIT * sizes + rank * 2.0**-86
    low, high = (rounded(sums + sign * error, "float64", dtype)[0] for sign in (-1, 1))
    assert (found >= order(low)).all()
    assert (found <= order(high)).all()
    mostly_left = np.abs(sums) >= sizes * (rank + 4) * 2.0 ** (-16 if dtype == "bfloat16" else -13)
    mostly_left &= np.abs(sums) > 2.0 ** (-120 if dtype == "bfloat16" else -14)  # normal numbers
    apart = np.abs(found - order(rounded(sums, "float64", dtype)[0]))
    assert apart[mostly_left].max(initial=0) <= 1
    assert mostly_left.any() or kind in ("cancelling", "halfway", "zero", "minus zero", "tiny")


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 1e-3), ("float16", 5e-3)])
def test_nearly_all_values_are_the_exact_sums_rounded(dtype: str, share: float) -> None:
    one, base = change(64), bases(dtype, 64)["plain"]
    found, wanted = single(one, dtype, base), rounded(exact(one, dtype, base)[0], "float64", dtype)[0]
    assert np.count_nonzero(found.view("u2") != wanted.view("u2")) < share * found.size


@pytest.mark.costly
@pytest.mark.parametrize("tile", [1, 700, 1 << 19])
@pytest.mark.parametrize("dtype", DTYPES)
def test_which_rows_are_asked_for_changes_nothing(dtype: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singles, "TILE", tile)
    one, base = change(64), bases(dtype, 64)["plain"]
    wide = widened(base, dtype).astype("<f4")
    wide[17, 3], wide[120] = np.inf, np.nan
    add = changing([one], "float32", dtype)
    whole = add(wide, 0)[0].view("u2")
    for size in (1, 7, 100, 299):
        parts = [add(wide[begin : begin + size], begin)[0].view("u2") for begin in range(0, 300, size)]
        assert np.array_equal(np.concatenate(parts), whole), size


@pytest.mark.parametrize("cached", [1, 700, 1 << 17])
@pytest.mark.parametrize("stored", [*DTYPES, "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_is_widened_a_few_rows_at_a_time_without_being_changed(
    dtype: str, stored: str, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, base = change(64), bases("float16", 64)["plain"]
    wide = widened(base, "float16").astype("<f4")
    wide[17, 3], wide[120] = np.inf, np.nan
    base = cast(wide, "float32", stored)[0]
    wanted = changing([one], "float32", dtype)(cast(base, stored, "float32")[0], 0)
    monkeypatch.setattr(singles, "CACHED", cached)
    before = base.copy()
    found = changing([one], "float32", dtype, stored)(base, 0)
    assert np.array_equal(found[0].view("u2"), wanted[0].view("u2"))
    assert found[1] == wanted[1]
    assert np.array_equal(base.view("u1"), before.view("u1"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_infinite_values_and_factors_out_of_range_are_summed_in_order(dtype: str) -> None:
    one, base = change(3), bases(dtype, 3)["plain"]
    wide = widened(base, dtype).astype("<f4")
    plain = changing([one], "float32", dtype)(wide, 0)[0]
    wide[7, 9], wide[8, 1] = np.inf, 1e38
    left, right = one.pair()
    found, lost = changing([one], "float32", dtype)(wide, 0)
    wanted, all_lost = changed([one], dtype, wide.astype("<f8"), 0)
    assert lost == all_lost
    assert np.array_equal(found[7:9].view("u2"), wanted[7:9].view("u2"))
    others = np.delete(np.arange(300), [7, 8])
    assert np.array_equal(found[others].view("u2"), plain[others].view("u2"))
    for far in (1e30, np.nan):
        left = left.copy()
        left[5, 1] = far
        extreme = LowRankChange("product", 1.0, left, right)
        found, wanted = (way[0].view("u2") for way in (
            changing([extreme], "float32", dtype)(wide, 0), changed([extreme], dtype, wide.astype("<f8"), 0)
        ))  # fmt: skip
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_that_lies_halfway_is_rounded_to_even(dtype: str) -> None:
    """Of a float32 base, what lies between two values of 16 bits, normal or not, and beside it; no product moves it."""
    steps = np.arange(256, dtype="<u4").reshape(4, 64)
    starts = [0x3F800000, 0xBF800000, 0x00010000, 0x33000000, 0x38800000, 0xB3800000]
    ties = np.concatenate([start + steps * np.uint32(part) for start in starts for part in (0x8000, 0x1000)])
    base = np.concatenate([ties - np.uint32(1), ties, ties + np.uint32(1)]).view("<f4")
    one = LowRankChange("product", 1.0, np.zeros((len(base), 4)), np.random.default_rng(5).standard_normal((4, 64)))
    found = changing([one], "float32", dtype)(base, 0)[0]
    assert np.array_equal(found.view("u2"), changed([one], dtype, base.astype("<f8"), 0)[0].view("u2"))


def merged(dtype: torch.dtype) -> cs.Plan:
    save_file({**base_state(dtype), "up.weight": torch.randn(200, 80).to(dtype)}, "base.safetensors")
    a, b = factors(200, 80)
    peft_folder("a", {"up.lora_A.weight": a, "up.lora_B.weight": b})
    plan = cs.lora_merge("base.safetensors", "a")
    cs.apply(plan, "out.safetensors")
    return plan


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_verify_says_what_another_processor_would_make_otherwise(dtype: torch.dtype, ckpt: Any) -> None:
    merged(dtype)
    assert (cs.verify("out.safetensors").near, cs.verify("out.safetensors").compared) == (0, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(singles, "multiplied", lambda left, right: (left @ right) * np.float32(1 + 2.0**-17))
        found = cs.verify("out.safetensors")
        assert found.ok
        assert (found.near, found.compared) == (1, 9)
        assert "close to numpy's result 1" in " ".join(ckpt("verify", "out.safetensors").out.split())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_verify_finds_a_value_that_no_processor_makes(dtype: torch.dtype) -> None:
    plan = merged(dtype)
    state = load_file("out.safetensors")
    state["up.weight"].view(torch.int16)[3, 3] += 20
    save_file(state, "other.safetensors")
    (fault,) = cs.verify("other.safetensors", plan=plan).failed
    assert "differs from what up.weight" in fault.why
