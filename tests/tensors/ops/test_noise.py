"""Noise on copies: the same for each place, however it is read, and of the sum 0 over the copies."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.noise import noisy_factors

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


def test_a_part_has_the_factors_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, whole = (40, 12), ((0, 40), (0, 12))
    factors = noisy_factors(shape, whole, 1, RUNS, 0.5, 3)
    assert np.array_equal(noisy_factors(shape, ((3, 17), (4, 11)), 1, RUNS, 0.5, 3), factors[3:17, 4:11])
    monkeypatch.setattr("ckptsurgeon.tensors.ops.noise._AT_ONCE", 30)
    assert np.array_equal(noisy_factors(shape, whole, 1, RUNS, 0.5, 3), factors)
    assert noisy_factors(shape, ((0, 0), (0, 12)), 1, RUNS, 0.5, 3).shape == (0, 12)


def test_noise_depends_on_the_seed_and_is_proportional_to_the_share() -> None:
    one, other = (noisy_factors((8, 12), ((0, 8), (0, 12)), 1, RUNS, 0.5, seed) for seed in (3, 4))
    assert (one != other).all()
    np.testing.assert_allclose(
        noisy_factors((8, 12), ((0, 8), (0, 12)), 1, RUNS, 0.25, 3) - 1, (one - 1) / 2, atol=1e-15
    )


def test_random_numbers_are_even() -> None:
    pairs = noisy_factors((20_000, 2), ((0, 20_000), (0, 2)), 1, ((0, 1), (0, 1)), 1.0, 7)[:, 0] - 1
    assert abs(pairs.mean()) < 0.01
    assert abs(pairs.var() - 1 / 6) < 0.005  # half the difference of two even numbers from -1 to 1
    assert abs(np.corrcoef(pairs[:-1], pairs[1:])[0, 1]) < 0.03
