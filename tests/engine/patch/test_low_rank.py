"""Low-rank factors: their product has the same bits in whatever order it is summed, wherever a block begins."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.engine.patch import low_rank
from ckptsurgeon.engine.patch.blocks import Decoder, Encoder
from ckptsurgeon.engine.patch.index import LowRank, Segment
from ckptsurgeon.engine.patch.low_rank import (
    Factors,
    RightFactor,
    add_product,
    bits_of,
    factors_of,
    rounded_factor,
    rows_of,
)


def found(rows: int, columns: int, rank: int, scale: float = 1.0) -> tuple[np.ndarray, Factors]:
    change = np.random.default_rng(rank).standard_normal((rows, columns)) * scale
    made = factors_of(lambda: iter(np.array_split(change, 3)), (rows, columns), rank)
    assert isinstance(made, Factors)
    return change, made


def check_exact(left: np.ndarray, right: np.ndarray) -> None:
    """Fractions have no rounding: if float64 gives the same sums, no order of the terms gives others."""
    product = left.astype("<f8") @ right.astype("<f8")
    for row, column in ((0, 0), (17, 3), (-1, -1)):
        pairs = zip(left[row].tolist(), right[:, column].tolist(), strict=True)
        assert Fraction(float(product[row, column])) == sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))
    turned = np.zeros_like(product)
    for one in np.random.default_rng(0).permutation(right.shape[0]):
        turned += np.outer(left[:, one].astype("<f8"), right[one].astype("<f8"))
    assert np.array_equal(product, turned)


@pytest.mark.parametrize(("rank", "scale"), [(1, 1.0), (3, 1e-30), (33, 1e30), (70, 1e-3)])
def test_the_product_is_exact_in_float64(rank: int, scale: float) -> None:
    _, made = found(90, 80, rank, scale)
    check_exact(made.left, made.right)


@pytest.mark.parametrize("rank", [1, 2, 31, 32, 33, 70, 128, 129, 1000])
def test_the_largest_product_is_exact_in_float64(rank: int) -> None:
    """All elements are near the largest one and positive, so the sums have as many bits as they can have."""
    assert rank * 4 ** bits_of(rank) <= 1 << 53
    draw = np.random.default_rng(rank)
    left, right = draw.uniform(0.95, 1, (40, rank)), draw.uniform(0.95, 1, (rank, 30))
    check_exact(*(rounded_factor(one, bits_of(rank)) for one in (left, right)))
    assert np.abs(rounded_factor(left, bits_of(rank)) - left).max() <= 2.0 ** -bits_of(rank)


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_the_error_is_the_smallest_of_any_product(rank: int) -> None:
    """Of these normal changes, no direction stands out: a random start then misses the best one by a little."""
    change, made = found(120, 90, rank)
    values = torch.linalg.svdvals(torch.from_numpy(change))
    best = values[rank:].square().sum().sqrt().item()
    error = np.linalg.norm(change - made.left.astype("<f8") @ made.right.astype("<f8"))
    assert best * (1 - 1e-9) <= error <= best * 1.02
    assert made.square == pytest.approx(values.square().sum().item())


@pytest.mark.parametrize("part", [7, 64, 1 << 18])
def test_a_part_of_the_product_is_added_from_any_element_on(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "PART", part)
    _, made = found(40, 21, 4)
    old = np.random.default_rng(0).standard_normal((40, 21)).astype("<f4")
    wanted = (old.astype("<f8") + made.left.astype("<f8") @ made.right.astype("<f8")).astype("<f4").reshape(-1)
    for begin, end in ((0, 840), (5, 9), (20, 22), (30, 800), (21, 42), (839, 840)):
        values = old.reshape(-1)[begin:end].copy()
        add_product(values, "float32", made.left[rows_of(begin, end - begin, 21)], made.right, begin % 21)
        assert np.array_equal(values, wanted[begin:end])


def test_the_sum_is_rounded_once() -> None:
    """1 + 2^-8 is halfway between two values of bfloat16, and becomes 1; a little more does not, if float32 is left out."""
    values = np.array([0x3F80, 0x3F80], "<u2")
    add_product(values, "bfloat16", np.ones((1, 1), "<f4"), np.array([[2**-8, 2**-8 + 2**-30]], "<f4"), 0)
    assert values.tolist() == [0x3F80, 0x3F81]


def test_a_block_of_a_factor_needs_the_other_factor() -> None:
    _, made = found(40, 21, 4)
    data = Encoder().encode_factor(made.left, "float32")
    out = np.zeros(4 * 40 * 21, np.uint8)
    Decoder().decode(data, out, RightFactor(made.right, "float32"))
    with pytest.raises(cs.FormatError):
        Decoder().decode(data, out)
    for right in (made.right[:3], np.ones((5, 21), "<f4"), np.ones((4, 20), "<f4")):
        with pytest.raises(cs.FormatError):
            Decoder().decode(data, out, RightFactor(right, "float32"))
    for dtype in ("bfloat16", "float64", ""):
        with pytest.raises(cs.FormatError):
            Decoder().decode(data, out, RightFactor(made.right, dtype))
    for end in range(1, len(data), 7):
        with pytest.raises(cs.FormatError):
            Decoder().decode(data[:end], out, RightFactor(made.right, "float32"))


@pytest.mark.parametrize(
    "row",
    [
        ["float32", 20, 20, 0.5],  # not below the columns
        ["float32", 20, 0, 0.5],
        ["float32", 21, 3, 0.5],  # no whole rows
        ["float32", 0, 3, 0.5],
        ["int32", 20, 3, 0.5],
        ["float32", 20, 3, -1.0],
        ["float32", 20, 3, 1],
        ["float32", 20, "3", 0.5],
        ["float32", 20, 3],
        [["float32"], 20, 3, 0.5],
        None,
        {},
    ],
)
def test_factors_that_do_not_fit_their_segment_are_an_error(row: object) -> None:
    assert LowRank.from_json(["float32", 20, 3, 0.5], 3200) == LowRank("float32", 20, 3, 0.5)
    with pytest.raises((ValueError, TypeError)):
        LowRank.from_json(row, 3200)


def test_factors_that_take_much_memory_are_an_error_before_they_are_read() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        LowRank.from_json(["float32", 1 << 30, 99, 0.5], 1 << 50)


@pytest.mark.parametrize(
    ("kind", "blocks", "more"),
    [
        ("low_rank", [9, 9], []),
        ("low_rank", [9], [["float32", 20, 3, 0.5]]),  # the right factor is missing
        ("low_rank", [9, 0], [["float32", 20, 3, 0.5]]),  # it is empty
        ("low_rank", [9, 9, 9], [["float32", 20, 3, 0.5]]),
        ("low_rank", [9, 4 * 60 + 65], [["float32", 20, 3, 0.5]]),
        ("low_rank", [9, 9], [["float32", 20, 3, 0.5]] * 2),
        ("xor", [9], [["float32", 20, 3, 0.5]]),
        ("same", [], [["float32", 20, 3, 0.5]]),
    ],
)
def test_a_segment_has_factors_only_if_its_kind_has(kind: str, blocks: list[int], more: list[object]) -> None:
    right = ["low_rank", 3200, "w", 7, [9, 9], ["float32", 20, 3, 0.5]]
    assert Segment.from_json(right).to_json() == right
    with pytest.raises(ValueError, match="fit together|unpack"):
        Segment.from_json([kind, 3200, "w", 7, blocks, *more])
