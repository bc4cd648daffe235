"""Methods that work on singular vectors: changes that have few of them, or none, and values at the limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ckptsurgeon.errors import PlanError
from ckptsurgeon.methods.merge.arithmetic import orthogonal, spectra
from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.merge_arrays import METHODS, Arrays, merge

SPECTRAL = [name for name, one in METHODS.items() if one.held is not None and not one.statistics]
EVERY = pytest.mark.parametrize("method", SPECTRAL)


def change(*shape: int, seed: int = 0, rank: int | None = None) -> Array:
    draw = np.random.RandomState(seed)
    if rank is None:
        return draw.standard_normal(shape)
    return draw.standard_normal((shape[0], rank)) @ draw.standard_normal((rank, shape[1]))


def merged(method: str, changes: list[Array], dtype: str = "f8", **given: Any) -> Array:
    """What becomes of the changes of a base that is zero."""
    return merge(method, [one.astype(dtype) for one in changes], np.zeros(changes[0].shape, dtype), **given)


def best(matrix: Array, rank: int) -> Array:
    """The nearest matrix of a rank."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    made: Array = (left[:, :rank] * values[:rank]) @ right[:rank]
    return made


def far(made: Array, wanted: Array) -> float:
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


@EVERY
@pytest.mark.parametrize("shape", [(), (7,), (3, 2, 4), (4, 3, 2, 2)])
def test_what_is_no_matrix_gets_the_mean_of_the_changes(method: str, shape: tuple[int, ...]) -> None:
    changes = [np.asarray(change(*shape, seed=seed)) for seed in range(3)]
    np.testing.assert_allclose(merged(method, changes), sum(changes) / 3, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged(method, changes, lambda_=0.5), sum(changes) / 6, rtol=1e-12, atol=1e-12)


@EVERY
def test_a_matrix_gets_it_too_where_matrices_is_off(method: str) -> None:
    changes = [change(6, 4, seed=seed) for seed in range(3)]
    np.testing.assert_allclose(merged(method, changes, matrices=False), sum(changes) / 3, rtol=1e-12)
    assert far(merged(method, changes), sum(changes) / 3) > 0.1


@EVERY
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rank", [None, 2])
def test_rows_and_columns_in_another_order_are_merged_to_the_same(method: str, dtype: str, rank: int | None) -> None:
    """Nothing comes of the vectors that LAPACK makes up where there is no change."""
    changes = [change(20, 14, seed=seed, rank=rank) for seed in range(3)]
    rows, columns = np.random.RandomState(9).permutation(20), np.random.RandomState(8).permutation(14)
    made = merged(method, changes, dtype)
    other = merged(method, [one[rows][:, columns] for one in changes], dtype)
    assert far(other, made[rows][:, columns]) < (1e-5 if dtype == "f4" else 1e-9)


@EVERY
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("factor", [1e-30, 1e30, 1e-200, 1e200])
def test_the_size_of_changes_makes_no_difference(method: str, dtype: str, factor: float) -> None:
    if dtype == "f4" and not 1e-40 < factor < 1e40:
        pytest.skip("beyond float32")
    changes = [change(8, 12, seed=seed) for seed in range(2)]
    made = merged(method, [one * factor for one in changes], dtype)
    assert far(made.astype("f8") / factor, merged(method, changes)) < (1e-5 if dtype == "f4" else 1e-9)


@EVERY
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_change_that_is_not_finite_names_its_model(method: str, value: float) -> None:
    changes = [change(6, 4, seed=seed) for seed in range(3)]
    changes[1][2, 3] = value
    with pytest.raises(PlanError, match=r"the change of model 2 has NaN or infinite values") as error:
        merged(method, changes)
    assert "matrices:KEY=false" in error.value.hint
    assert np.count_nonzero(~np.isfinite(merged(method, changes, matrices=False))) == 1


@EVERY
def test_a_decomposition_that_is_not_found_is_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any, **more: Any) -> Any:
        raise np.linalg.LinAlgError("SVD did not converge")

    for name in ("svd", "eigh", "inv"):
        monkeypatch.setattr(np.linalg, name, never)
    with pytest.raises(PlanError, match="could not be computed: SVD did not converge"):
        merged(method, [change(6, 6, seed=seed) for seed in range(2)])


@EVERY
@pytest.mark.parametrize("shape", [(30, 30), (90, 20), (20, 90), (5, 7), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_products_of_rows_give_what_decompositions_give(
    method: str, shape: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spectra._NOTHING, 8, 1e-6)  # as in float32, where rounding is larger
    for rank in (None, 2):
        changes = [change(*shape, seed=seed, rank=rank) for seed in range(count)]
        with monkeypatch.context() as patched:
            made = merged(method, changes)
            patched.setitem(spectra._SAFE, 8, np.inf)
            assert far(made, merged(method, changes)) < 1e-7
        assert np.isfinite(made).all()


def test_tsv_m_of_one_model_is_the_model() -> None:
    base, model = change(6, 4).astype("f4"), change(6, 4, seed=1).astype("f4")
    np.testing.assert_array_equal(merge("tsv_m", [model], base), base + (model - base))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("count", [2, 3])
def test_tsv_m_of_equal_models_is_the_best_change_of_its_rank(dtype: str, count: int) -> None:
    one = change(12, 18)
    made = merged("tsv_m", [one] * count, dtype)
    assert far(made, best(one, 12 // count)) < (1e-6 if dtype == "f4" else 1e-12)


def test_tsv_m_adds_what_does_not_interfere() -> None:
    changes = [np.zeros((8, 10)), np.zeros((8, 10)), np.zeros((8, 10))]
    changes[0][:2, :2], changes[1][4:6, 5:7] = [[3, 1], [0, 2]], [[1, 0], [5, 4]]  # the third model did not change
    np.testing.assert_allclose(merged("tsv_m", changes), sum(changes), atol=1e-12)


def spaces(shared: int, slant: float) -> list[spectra.Components]:
    """Vectors of two matrices of 20 by 16: the left ones of the second have ``shared`` directions of the first."""
    found = []
    for seed, rank in ((0, 6), (1, 4)):
        left, right = (np.linalg.qr(change(side, rank, seed=seed + side))[0] for side in (20, 16))
        if found:
            left[:, :shared] = found[0].left[:, :shared]
            left[:, shared:] = slant * left[:, shared:] + found[0].left[:, shared:rank]
            left = np.linalg.qr(left)[0]
        found.append(spectra.Components(left, np.arange(rank, 0, -1.0), right.T))
    return found


@pytest.mark.parametrize("slant", [1.0, 0.01])
@pytest.mark.parametrize("shared", [0, 1, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_vectors_of_two_matrices_become_orthogonal_as_those_of_any_number(
    shared: int, slant: float, *, turned: bool
) -> None:
    pair = spaces(shared, slant)[:: -1 if turned else 1]
    changes = spectra.Changes(Arrays([np.zeros((20, 16))] * 3).whole(), 1.0, 1e-6)
    every = spectra.joined(np, pair)
    left, right = (orthogonal.nearest_orthogonal(changes, one) for one in (every.left, every.right))
    made = orthogonal.orthogonal_sum(changes, *pair)
    assert made is not None
    np.testing.assert_allclose(made, (left * every.values) @ right, atol=1e-9)
    one, other = (
        orthogonal._pair(changes, *sides) for sides in zip(*((one.left, one.right.T) for one in pair), strict=True)
    )
    assert one is not None
    assert other is not None
    found = np.concatenate([one.turned @ one.turns.T, one.other], axis=1)
    np.testing.assert_allclose(found, left, atol=1e-10)
    np.testing.assert_allclose(np.concatenate([other.turned @ other.turns.T, other.other], axis=1), right.T, atol=1e-10)
    assert np.linalg.matrix_rank(found) == 10 - shared
    exact = np.where(np.arange(10) < shared, 0.0, 1.0)
    np.testing.assert_allclose(np.sort(np.linalg.svd(found, compute_uv=False)), exact[np.argsort(exact)], atol=1e-9)


def test_vectors_that_rounding_may_have_slanted_are_made_orthogonal_all_together() -> None:
    first, second = spaces(0, 1.0)
    double = spectra.Changes(Arrays([np.zeros((20, 16))] * 3).whole(), 1.0, 1e-12)
    for one, is_known in (
        (second, True),
        (spectra.Components(second.left, 10.0 ** -np.arange(4), second.right), False),
    ):
        assert (orthogonal.orthogonal_sum(double, first, one) is not None) == is_known


def test_tsv_m_of_more_models_than_rows_takes_one_vector_of_each() -> None:
    changes = [np.zeros((2, 7)) for _ in range(3)]
    for place, one in enumerate(changes):
        one[place % 2, place] = place + 1
    wanted = np.zeros((2, 7))
    wanted[0, :3], wanted[1, 1] = [1 / np.sqrt(2), 0, 3 / np.sqrt(2)], 2  # two models share the first row
    np.testing.assert_allclose(merged("tsv_m", changes), wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rank", [3, 12])
def test_iso_c_of_any_rank_has_one_singular_value(dtype: str, rank: int) -> None:
    """The noise that rounding leaves beside a change of low rank is not raised to it."""
    changes = [change(12, 18, rank=rank), change(12, 18, rank=rank)]
    values = np.linalg.svd(changes[0] * 2, compute_uv=False)[:rank]
    found = np.linalg.svd(merged("iso_c", changes, dtype), compute_uv=False)
    np.testing.assert_allclose(found[:rank], values.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[rank:], 0, atol=1e-5)


def test_iso_cts_has_no_direction_of_a_model_that_has_only_common_ones() -> None:
    changes = [change(12, 18, rank=3)] * 2
    made = merged("iso_cts", changes)
    np.testing.assert_allclose(made, merged("iso_c", changes), atol=1e-10)
    assert np.linalg.matrix_rank(made) == 3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(7, 9), (9, 2), (1, 1), (8, 8)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_iso_cts_has_as_many_directions_as_the_matrix(share: float, shape: tuple[int, int], count: int) -> None:
    made = merged("iso_cts", [change(*shape, seed=seed) for seed in range(count)], common_space=share)
    found = np.linalg.svd(made, compute_uv=False)
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


def test_iso_cts_of_a_common_space_that_is_all_is_iso_c() -> None:
    changes = [change(7, 9, seed=seed) for seed in range(3)]
    np.testing.assert_allclose(merged("iso_cts", changes, common_space=1), merged("iso_c", changes), atol=1e-12)


def least_squares(changes: list[Array], ridge: float = 0.0, rcond: float = 1e-6) -> Array:
    """WUDI's minimum nearest to the sum of the changes, from the definition: W A = B in the least squares' sense."""
    start, sizes = np.sum(changes, axis=0), [np.linalg.norm(one) for one in changes]
    rows = [one / size for one, size in zip(changes, sizes, strict=True)]
    wanted = [(one - start) @ row.T for one, row in zip(changes, rows, strict=True)]
    columns = changes[0].shape[1]
    damped = np.sqrt(ridge * len(changes) / columns) * np.eye(columns)
    left, right = np.vstack([*rows, damped]), np.hstack([*wanted, np.zeros((len(start), columns))])
    made: Array = start + np.linalg.lstsq(left, right.T, rcond=rcond)[0].T
    return made


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-5), ("f8", 1e-8)])
@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    ("shape", "count"), [((6, 30), 3), ((30, 6), 3), ((9, 9), 2), ((7, 14), 2), ((1, 5), 2), ((5, 1), 2)]
)
def test_wudi_is_the_minimum_nearest_to_the_sum(
    shape: tuple[int, int], count: int, rank: int | None, ridge: float, dtype: str, bound: float
) -> None:
    changes = [change(*shape, seed=seed, rank=rank) for seed in range(count)]
    made, wanted = merged("wudi", changes, dtype, ridge=ridge), least_squares(changes, ridge)
    assert far(made, wanted) < bound


@pytest.mark.parametrize("shape", [(9, 9), (9, 40), (40, 9)])
@pytest.mark.parametrize("least", [1e-2, 3e-4, 1e-9])
def test_wudi_needs_eigenvectors_only_if_changes_lack_directions(
    shape: tuple[int, int], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows or columns, whichever are fewer, are scaled by 1 to ``least``; the square of 1e-9 is only rounding."""
    scales = np.geomspace(1, least, 9)
    changes = [change(*shape, seed=seed) * (scales[:, None] if shape[0] < shape[1] else scales) for seed in range(2)]
    called = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda one: called.append(1) or eigh(one))
    assert far(merged("wudi", changes), least_squares(changes, rcond=1e-5)) < 1e-7
    assert bool(called) is (least == 1e-9)


def test_wudi_of_inputs_that_have_nothing_in_common_is_the_sum() -> None:
    changes = [np.zeros((6, 8)) for _ in range(2)]
    changes[0][:, :4], changes[1][:, 4:] = change(6, 4), change(6, 4, seed=1)
    np.testing.assert_allclose(merged("wudi", changes), sum(changes), atol=1e-12)


def test_wudi_of_equal_models_is_the_model_and_one_without_change_has_no_influence() -> None:
    one, other, none = change(6, 9), change(6, 9, seed=1), np.zeros((6, 9))
    np.testing.assert_allclose(merged("wudi", [one, one, one]), one, atol=1e-10)
    np.testing.assert_allclose(merged("wudi", [one, none, other]), merged("wudi", [one, other]), atol=1e-12)
    np.testing.assert_array_equal(merged("wudi", [none, none]), none)


def test_wudi_with_a_large_ridge_stays_where_it_starts() -> None:
    changes = [change(6, 9, seed=seed) for seed in range(3)]
    apart = [far(merged("wudi", changes, ridge=ridge), np.sum(changes, axis=0)) for ridge in (0, 0.1, 10, 1e9)]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-8


def test_knots_ties_of_equal_models_is_the_model() -> None:
    one = change(9, 14, rank=4)
    np.testing.assert_allclose(merged("knots_ties", [one, one, one], density=1.0), one, atol=1e-12)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_knots_ties_of_directions_that_models_do_not_share_keeps_both(dtype: str) -> None:
    """In single elements, TIES drops what has the other sign; in the shared basis, no direction is of both models."""
    left, right = np.linalg.qr(change(8, 2))[0], change(2, 10, seed=1)
    changes = [np.outer(left[:, 0], right[0]), 1.5 * np.outer(left[:, 1], right[1])]
    made = merged("knots_ties", changes, dtype, density=1.0)
    np.testing.assert_allclose(made, sum(changes), atol=1e-5)
    other = merge("ties", changes, np.zeros((8, 10)), density=1.0)
    assert far(other, np.sum(changes, axis=0)) > 0.1


def test_knots_ties_keeps_as_many_elements_as_are_asked_for() -> None:
    changes = [np.diag([4.0, 3, 2, 1])]
    for density, values in ((0.0, []), (0.01, [4]), (3 / 16, [4, 3, 2]), (1.0, [4, 3, 2, 1])):
        made = merged("knots_ties", changes, density=density)
        np.testing.assert_allclose(np.diag(made), [*values, *[0] * (4 - len(values))], atol=1e-12)


def test_knots_dare_ties_is_the_formula_of_the_paper() -> None:
    """DARE of the singular values times V_i, then the signs and the mean of TIES, by torch."""
    changes = [change(9, 14, rank=3, seed=seed) for seed in range(3)]
    left, values, right = torch.linalg.svd(torch.from_numpy(np.concatenate(changes, 1)), full_matrices=False)
    parts = (values[:9, None] * right[:9]).chunk(3, 1)
    draws = Arrays(changes)
    keep = [torch.from_numpy(draws.uniform(draws.whole(), model))[:9] < 0.4 for model in range(3)]
    turned = (9 - np.arange(9) - 1).tolist()  # ckpt's basis is in ascending order of singular values
    stack = torch.stack([part * mask[turned] / 0.4 for part, mask in zip(parts, keep, strict=True)])
    agree = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    wanted = left[:, :9] @ ((stack * agree).sum(0) / agree.sum(0).clamp(min=1))
    assert far(merged("knots_dare_ties", changes, density=0.4), wanted.numpy()) < 1e-10


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_knots_dare_ties_that_keeps_all_is_knots_ties_and_one_that_keeps_nothing_is_the_base(density: float) -> None:
    changes = [change(9, 14, seed=seed) for seed in range(3)]
    made, other = (merged(name, changes, density=density) for name in ("knots_dare_ties", "knots_ties"))
    np.testing.assert_allclose(made, other, atol=1e-12)


@EVERY
@pytest.mark.parametrize("value", [1.7e308, 5e-324])
def test_the_largest_and_the_smallest_numbers_are_merged(method: str, value: float) -> None:
    given = {"density": 1.0} if method == "knots_ties" else {}
    made = merged(method, [np.array([[value]])], **given)
    np.testing.assert_allclose(made, value, rtol=1e-12)
