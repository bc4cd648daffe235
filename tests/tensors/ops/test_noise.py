"""Noise on copies: the same for each place, however it is read, and of the sum 0 over the copies."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.casts import cast
from ckptsurgeon.tensors.ops.noise import noisy_factors, with_noise

RUNS = ((0, 5), (0, 5), (0, 2))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_factors_of_all_copies_add_up_to_their_number(dim: int) -> None:
    shape = tuple(12 if at == dim else size for at, size in enumerate((7, 4, 6)))
    factors = np.moveaxis(noisy_factors(shape, tuple((0, size) for size in shape), dim, RUNS, 0.5, 3), dim, 0)
    for index in range(5):
        copies = factors[[at for at in range(12) if at % 5 == index]]
        np.testing.assert_allclose(copies.sum(0), len(copies), rtol=1e-15)
        assert all((one != other).all() for one, other in pairwise(copies))
    assert np.abs(factors - 1).max() < 1
    assert np.abs(factors - 1).std() > 0.1


def test_what_is_no_copy_stays() -> None:
    assert (noisy_factors((6, 3), ((0, 6), (0, 3)), 0, ((0, 5), (0, 1)), 0.5, 3)[1:5] == 1).all()


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_part_has_the_factors_of_the_whole(dim: int, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (12, 40) if dim == 0 else (40, 12)
    whole = tuple((0, size) for size in shape)
    factors = noisy_factors(shape, whole, dim, RUNS, 0.5, 3, wide)
    for rows, columns in (((3, 11), (4, 9)), ((5, 9), (1, 12)), ((0, 12), (3, 4)), ((7, 8), (0, 12))):
        part = noisy_factors(shape, (rows, columns), dim, RUNS, 0.5, 3, wide)
        assert np.array_equal(part, factors[slice(*rows), slice(*columns)])
    monkeypatch.setattr("ckptsurgeon.tensors.ops.noise.CACHED", 30)
    assert np.array_equal(noisy_factors(shape, whole, dim, RUNS, 0.5, 3, wide), factors)
    assert noisy_factors(shape, ((0, 0), whole[1]), dim, RUNS, 0.5, 3, wide).shape == (0, shape[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_noise_of_16_bit_weights_sums_to_0_up_to_their_rounding(dtype: str) -> None:
    """And takes enough different values to make each copy another one."""
    values, _ = cast(np.tile(np.random.default_rng(0).uniform(1, 2, (64, 96)), (1, 2)), "float64", dtype)
    noisy = with_noise(values, dtype, values.shape, ((0, 64), (0, 192)), 1, ((0, 96), (0, 96)), 0.25, 3)
    plain, made = (cast(one, dtype, "float64")[0] for one in (values, noisy))
    assert np.abs(made / plain - 1).max() <= 0.25 + 2**-8
    np.testing.assert_allclose(made[:, :96] + made[:, 96:], 2 * plain[:, :96], atol=2**-7)
    assert (made[:, :96] != made[:, 96:]).mean() > 0.98


def test_noise_depends_on_the_seed_and_is_proportional_to_the_share() -> None:
    one, other = (noisy_factors((8, 12), ((0, 8), (0, 12)), 1, RUNS, 0.5, seed) for seed in (3, 4))
    assert (one != other).all()
    np.testing.assert_allclose(
        noisy_factors((8, 12), ((0, 8), (0, 12)), 1, RUNS, 0.25, 3) - 1, (one - 1) / 2, atol=1e-15
    )


@pytest.mark.parametrize("copies", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_random_numbers_are_even(wide: str, copies: int) -> None:
    runs = ((0, 300),) * copies
    noise = noisy_factors((200, 300 * copies), ((0, 200), (0, 300 * copies)), 1, runs, 1.0, 7, wide) - 1
    each = noise.reshape(200, copies, 300)
    np.testing.assert_allclose(each.sum(1), 0, atol=1e-14 if wide == "float64" else 1e-6)
    assert np.abs(each).max() <= 1
    assert np.abs(each.mean((0, 2))).max() < 0.01
    threes = np.arange(copies) >= (copies - 3 if copies % 2 else copies)
    np.testing.assert_allclose(each.var((0, 2)), np.where(threes, 1 / 8, 1 / 3), atol=0.005)
    if not threes.all():
        counts, _ = np.histogram(each[:, ~threes], 20, (-1, 1))
        np.testing.assert_allclose(counts, counts.mean(), rtol=0.05)


@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_random_numbers_of_neighbours_are_independent(wide: str) -> None:
    """Of columns, rows, pairs of copies, seeds, and rows that are shifted against each other."""
    runs = ((0, 300),) * 4
    one, other = (noisy_factors((200, 1200), ((0, 200), (0, 1200)), 1, runs, 1.0, seed, wide) - 1 for seed in (7, 8))
    first, second = one[:, :300], one[:, 600:900]
    pairs = [(first[:, :-1], first[:, 1:]), (first[:-1], first[1:]), (first, second), (first, other[:, :300])]
    pairs += [(first[:-1, :-shift], first[1:, shift:]) for shift in (1, 2, 7)]
    for left, right in pairs:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.02
        assert abs(np.corrcoef(np.abs(left).ravel(), np.abs(right).ravel())[0, 1]) < 0.02


def test_random_numbers_are_the_same_in_every_version() -> None:
    """They are part of what a recipe promises: the same seed gives the same file."""
    factors = noisy_factors((2, 7), ((0, 2), (0, 7)), 1, ((0, 3), (0, 3), (0, 1)), 0.5, 3)
    recorded = [
        [0.868726473, 0.6984082831, 1.018969438, 0.8933275981, 1.3015917169, 0.981030562, 1.2379459289],
        [1.1002394056, 0.5866767704, 0.5224211884, 0.977922626, 1.4133232296, 1.4775788116, 0.9218379685],
    ]
    np.testing.assert_allclose(factors, recorded, rtol=0, atol=1e-9)
    halves = noisy_factors((2, 7), ((0, 2), (0, 7)), 1, ((0, 3), (0, 3), (0, 1)), 0.5, 3, "float32")
    recorded = [
        [1.070846558, 0.725143433, 1.313796997, 1.188766479, 1.274856567, 0.686203003, 0.740386963],
        [1.250595093, 0.907928467, 0.893890381, 0.796276093, 1.092071533, 1.106109619, 0.953128815],
    ]
    np.testing.assert_allclose(halves, recorded, rtol=0, atol=1e-7)
