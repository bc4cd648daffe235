"""Products that are added to a base: the bytes of sums made in order, whatever BLAS makes of its last bits."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.methods.lora import decomposition as blas
from ckptsurgeon.methods.lora import products
from ckptsurgeon.methods.lora.changing import changing, wide_dtype
from ckptsurgeon.methods.lora.products import DoubleProducts, LowRankChange, changed
from ckptsurgeon.tensors.ops.casts import cast


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


def in_order(change: LowRankChange, base: Any) -> Any:
    return changed([change], "float32", base.astype("<f8"), 0)[0]


def fast(change: LowRankChange, base: Any) -> Any:
    assert wide_dtype("float32", [change.kind], "float32") == "float32"
    return changing([change], "float32", "float32")(base, 0)[0]


def bits(values: Any) -> Any:
    return values.view(f"u{values.itemsize}")


@pytest.mark.parametrize("kind", bases("float32"))
def test_the_last_bits_of_a_product_do_not_decide(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another BLAS adds up otherwise: here with errors that are as large as they may be."""
    change, base, made = factors(16), bases("float32")[kind], np.random.default_rng(2)
    wanted = in_order(change, base)
    assert np.array_equal(bits(fast(change, base)), bits(wanted))

    def other(left: Any, right: Any) -> Any:
        size = np.abs(left) @ np.abs(right)
        return left @ right + np.where(made.random(size.shape) < 0.5, 9, -9) * np.finfo("f8").eps * size

    monkeypatch.setattr(products, "multiplied", other)
    assert np.array_equal(bits(fast(change, base)), bits(wanted))


@pytest.mark.parametrize("factor", [0.0, -0.0, 1e-30, 2.0**-14])
def test_small_factors_and_none_give_the_sums_in_order(factor: float) -> None:
    change = factors(3)
    change = LowRankChange("product", 1.0, factor * change.pair()[0], change.pair()[1])
    for kind, base in bases("float32").items():
        assert np.array_equal(bits(fast(change, base)), bits(in_order(change, base))), kind


@pytest.mark.parametrize("elements", [1, 700, 1 << 20])
def test_pieces_of_any_size_give_the_same(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    change, base = factors(16), bases("float32")["halfway"]
    monkeypatch.setattr(products, "PIECE", elements)
    assert np.array_equal(bits(fast(change, base)), bits(in_order(change, base)))


def test_few_values_are_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a merge of a large rank takes a hundred times as long."""
    summed: list[int] = []
    again = DoubleProducts._at
    monkeypatch.setattr(DoubleProducts, "_at", lambda *given: (summed.append(given[-1].size), again(*given))[1])
    fast(factors(256), bases("float32")["plain"])
    assert sum(summed) < 60000 // 500


@pytest.mark.parametrize("known", [True, False])
def test_products_of_many_threads_are_those_of_one(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = (np.random.default_rng(3).integers(-9, 9, shape).astype("f8") for shape in ((70, 90), (90, 1000)))
    if not known:
        monkeypatch.setattr(blas, "_LIMITS", blas._BlasThreads(lambda: None))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(blas.multiplied(left, right))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [np.array_equal(one, left @ right) for one in found] == [True] * 4


def test_the_number_of_threads_is_left_as_it_was() -> None:
    number, seen = [7], []
    limits = blas._BlasThreads(lambda: (lambda: number[0], lambda n: number.__setitem__(0, n)))
    with limits.alone() as first:
        with limits.alone() as second:
            seen.append((number[0], first, second))
        seen.append((number[0], first, second))
    assert seen == [(1, True, True)] * 2
    assert number == [7]
