"""Methods that drop at random: how often, which, by how much the rest grows, and the same again for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.merge_arrays import merge

BASE = np.zeros((200, 500), "f4")
MODEL = np.random.RandomState(3).standard_normal((200, 500)).astype("f4")
ALL = pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])


def kept(method: str, **parameters: object) -> Array:
    return merge(method, [MODEL], BASE, rescale=False, **parameters) != 0


@ALL
@pytest.mark.parametrize("density", [0.2, 0.53, 0.8])
def test_the_share_that_is_kept_is_the_density(method: str, density: float) -> None:
    share = kept(method, density=density).mean()
    assert abs(share - density) < 4 * np.sqrt(density * (1 - density) / BASE.size)


@ALL
def test_what_is_kept_has_the_sum_of_magnitudes_of_the_whole(method: str) -> None:
    made = merge(method, [MODEL], BASE, density=0.4, normalize=False)
    mask = made != 0
    factor = np.abs(MODEL).sum(dtype="f8") / np.abs(MODEL[mask]).sum(dtype="f8")
    np.testing.assert_allclose(made[mask], MODEL[mask] * factor, rtol=1e-5)
    assert 0.9 < factor * np.abs(MODEL[mask]).sum() / np.abs(MODEL).sum() < 1.1


@pytest.mark.costly
@ALL
def test_the_seed_decides_whatever_the_slices(method: str) -> None:
    first, again = (kept(method, density=0.5, limit=limit) for limit in (1 << 20, 1000))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, kept(method, density=0.5, _seed=1))
    assert not np.array_equal(first, kept(method, density=0.5, _key="other"))


@pytest.mark.costly
@ALL
def test_every_model_has_a_mask_of_its_own(method: str) -> None:
    one, two = (merge(method, [MODEL, MODEL], BASE, density=0.5, weight=w, normalize=False) for w in ([1, 0], [0, 1]))
    assert not np.array_equal(one != 0, two != 0)


@ALL
def test_nothing_is_kept_at_density_zero_and_all_at_one(method: str) -> None:
    assert np.array_equal(merge(method, [MODEL], BASE, density=0.0), BASE)
    assert np.array_equal(merge(method, [MODEL], BASE, density=1.0), MODEL)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_keeps_the_larger_of_a_row_likelier(method: str) -> None:
    mask = kept(method, density=0.5, epsilon=0.3)
    by_rank = np.take_along_axis(mask, np.argsort(np.abs(MODEL), axis=1), axis=1).mean(axis=0)
    wanted = 0.2 + 0.6 * np.linspace(0, 1, 500)
    assert np.abs(by_rank.reshape(10, 50).mean(axis=1) - wanted.reshape(10, 50).mean(axis=1)).max() < 0.025


def test_della_takes_the_first_of_equal_magnitudes_for_the_smaller() -> None:
    base, model = np.zeros((4000, 4), "f4"), np.full((4000, 4), 0.5, "f4")
    mask = merge("della_linear", [model], base, density=0.5, epsilon=0.3, rescale=False) != 0
    assert np.abs(mask.mean(axis=0) - [0.2, 0.4, 0.6, 0.8]).max() < 0.04


def test_dare_drops_wherever_a_value_stands() -> None:
    mask = kept("dare_linear", density=0.5)
    assert abs(np.corrcoef(mask.reshape(-1)[1:], mask.reshape(-1)[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.abs(MODEL).reshape(-1), mask.reshape(-1))[0, 1]) < 0.02
