"""Products that are added to a base: the bytes of sums made in order, whatever BLAS makes of its last bits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.methods.lora import decomposition as blas
from ckptsurgeon.methods.lora import products
from ckptsurgeon.methods.lora.products import LowRankChange, changed, changing, wide_dtype
from ckptsurgeon.tensors.ops.casts import cast

DTYPES = ["float32", "bfloat16", "float16"]


def factors(rank: int, seed: int = 0) -> LowRankChange:
    made = np.random.default_rng(seed)
    return LowRankChange("product", 1.0, made.standard_normal((300, rank)), made.standard_normal((rank, 200)))


def bases(dtype: str) -> dict[str, Any]:
    """Bases whose sums are of ordinary size, cancel, are zero, or are below what a type holds in full."""
    made = np.random.default_rng(1)
    plain = made.standard_normal((300, 200))
    product = factors(16).product(0, 300)
    kinds = {"plain": plain, "cancelling": -product, "zero": 0 * plain, "minus zero": -0.0 * np.abs(plain),
             "tiny": plain * 1e-7, "halfway": np.round(plain * 64) / 64 + 2.0**-9 - product}  # fmt: skip
    return {name: cast(values, "float64", dtype)[0] for name, values in kinds.items()}


def in_order(change: LowRankChange, dtype: str, base: Any) -> Any:
    return changed([change], dtype, cast(base, dtype, "float64")[0], 0)[0]


def fast(change: LowRankChange, dtype: str, base: Any) -> Any:
    wide = wide_dtype(dtype, [change.kind], dtype)
    return changing([change], wide, dtype)(cast(base, dtype, wide)[0], 0)[0]


def bits(values: Any) -> Any:
    return values.view(f"u{values.itemsize}")


@pytest.mark.parametrize("kind", bases("float32"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_bits_of_a_product_do_not_decide(dtype: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another BLAS adds up otherwise: here with errors that are as large as they may be."""
    change, base, made = factors(16), bases(dtype)[kind], np.random.default_rng(2)
    wanted = in_order(change, dtype, base)
    assert np.array_equal(bits(fast(change, dtype, base)), bits(wanted))

    def other(left: Any, right: Any) -> Any:
        size = np.abs(left) @ np.abs(right)
        return left @ right + np.where(made.random(size.shape) < 0.5, 9, -9) * np.finfo("f8").eps * size

    monkeypatch.setattr(products, "multiplied", other)
    assert np.array_equal(bits(fast(change, dtype, base)), bits(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, -0.0, 1e-30, 2.0**-14])
def test_small_factors_and_none_give_the_sums_in_order(dtype: str, factor: float) -> None:
    change = factors(3)
    change = LowRankChange("product", 1.0, factor * change.pair()[0], change.pair()[1])
    for kind, base in bases(dtype).items():
        assert np.array_equal(bits(fast(change, dtype, base)), bits(in_order(change, dtype, base))), kind


@pytest.mark.parametrize("elements", [1, 700, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_any_size_give_the_same(dtype: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change, base = factors(16), bases(dtype)["halfway"]
    monkeypatch.setattr(products, "PIECE", elements)
    assert np.array_equal(bits(fast(change, dtype, base)), bits(in_order(change, dtype, base)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_values_are_summed_again(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a merge of a large rank takes a hundred times as long."""
    summed: list[int] = []
    again = products._Products._at
    monkeypatch.setattr(products._Products, "_at", lambda *given: (summed.append(given[-1].size), again(*given))[1])
    fast(factors(256), dtype, bases(dtype)["plain"])
    assert sum(summed) < 60000 // 500


@pytest.mark.parametrize("known", [True, False])
def test_products_of_many_threads_are_those_of_one(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = (np.random.default_rng(3).integers(-9, 9, shape).astype("f8") for shape in ((70, 90), (90, 1000)))
    if not known:
        monkeypatch.setattr(blas, "_LIMITS", blas._BlasThreads(None, print))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(blas.multiplied(left, right))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [np.array_equal(one, left @ right) for one in found] == [True] * 4


def test_the_number_of_threads_is_left_as_it_was() -> None:
    number, seen = [7], []
    limits = blas._BlasThreads(lambda: number[0], lambda n: number.__setitem__(0, n))
    with limits.alone() as first:
        with limits.alone() as second:
            seen.append((number[0], first, second))
        seen.append((number[0], first, second))
    assert seen == [(1, True, True)] * 2
    assert number == [7]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 1e-12, 1.0])
def test_a_base_that_lies_halfway_is_rounded_to_even(dtype: str, factor: float) -> None:
    """Of a float32 base, what lies between two values of 16 bits, normal or not, and beside it; no product moves some."""
    steps = np.arange(256, dtype="<u4").reshape(4, 64)
    starts = [0x3F800000, 0xBF800000, 0x00010000, 0x33000000, 0x38800000, 0xB3800000]
    ties = np.concatenate([start + steps * np.uint32(part) for start in starts for part in (0x8000, 0x1000)])
    base = np.concatenate([ties - np.uint32(1), ties, ties + np.uint32(1)]).view("<f4")
    left = factor * np.random.default_rng(4).standard_normal((len(base), 4))
    left[::2] = 0
    change = LowRankChange("product", 1.0, left, np.random.default_rng(5).standard_normal((4, 64)))
    found = changing([change], "float32", dtype)(base, 0)[0]
    assert np.array_equal(bits(found), bits(changed([change], dtype, base.astype("<f8"), 0)[0]))
