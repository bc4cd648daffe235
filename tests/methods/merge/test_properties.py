"""Rules that hold of many methods, whatever the values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.errors import PlanError
from ckptsurgeon.methods.merge import arcee_fusion
from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.depth import examples_of
from ...helpers.merge_arrays import METHODS, Arrays, merge

NEEDED: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.5, 0.3, 0.2]},
    "slerp": {"t": 0.4},
    "nuslerp": {"weight": [1.0, 2.0]},
    "multislerp": {"weight": [0.5, 0.3, 0.2]},
    "nearswap": {"t": 0.2},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.6, "weight": [0.5, 0.3, 0.2]},
    "dare_ties": {"density": 0.6},
    "della": {"density": 0.6},
    "della_linear": {"density": 0.6},
    "breadcrumbs": {"density": 0.6, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.6, "gamma": 0.1},
    "sce": {"select_topk": 0.3},
    "tall_mask": {"task": 2},
    "pcb": {"ratio": 0.4},
    "knots_ties": {"density": 0.4},
    "knots_dare_ties": {"density": 0.4},
}
"""Parameters that make a method do all that it can."""
VARIANTS = [
    *((name, NEEDED.get(name, {})) for name in METHODS),
    ("ties", {"density": 0.4, "rescale": True, "normalize": False}),
    ("nuslerp", {"weight": [1.0, 2.0], "nuslerp_flatten": False}),
    ("nuslerp", {"weight": [1.0, 2.0], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
]
IDS = ["-".join([name, *(key for key, value in given.items() if value in (True, False))]) for name, given in VARIANTS]
EVERY = pytest.mark.parametrize(("method", "given"), VARIANTS, ids=IDS)

MIX = {"linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"}


def inputs(method: str, shape: tuple[int, ...], seed: int = 0, dtype: Any = "f4") -> tuple[list[Array], Array | None]:
    """As many models as the method takes, at most three, and a base if it takes one; many of their values are equal."""
    draw = np.random.RandomState(seed)
    base = draw.randint(-2, 3, shape) / 4
    count = min(METHODS[method].models[1] or 3, 3)
    coarse = [base + draw.randint(-2, 3, shape) / 8 for _ in range(count)]
    models = [np.where(draw.rand(*shape) < 0.5, one, one + 0.1 * draw.standard_normal(shape)) for one in coarse]
    has_base = METHODS[method].base in ("required", "optional")
    return [one.astype(dtype) for one in models], base.astype(dtype) if has_base else None


@EVERY
@given(
    shape=st.sampled_from([(), (1,), (40,), (1, 7), (9, 5), (4, 3, 5), (2, 3, 2, 4)]),
    seed=st.integers(0, 5),
    limit=st.integers(1, 60),
)
@examples_of(12)
def test_slices_make_no_difference(
    method: str, given: dict[str, Any], shape: tuple[int, ...], seed: int, limit: int
) -> None:
    models, base = inputs(method, shape, seed)
    whole = merge(method, models, base, **given)
    sliced = merge(method, models, base, limit=limit, _threads=2, **given)
    assert whole.shape == shape
    assert whole.dtype == np.float32
    assert np.array_equal(whole, sliced)


@EVERY
def test_pieces_make_no_difference_and_neither_does_the_order_of_slices(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (500, 231))
    found = METHODS[method]
    results = []
    for limit, turned in ((1 << 20, False), (50_000, True)):
        tensors = Arrays(models, base, limit=limit, by_rows=found.wants_rows((500, 231), given))
        merging = found.prepare(tensors, given)
        results.append(tensors.merged(merging, (lambda slices: slices[::-1]) if turned else list))
    assert np.array_equal(*results)


@EVERY
def test_inputs_are_left_as_they_are(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (9, 5))
    for array in (*models, *([] if base is None else [base])):
        array.flags.writeable = False
    merge(method, models, base, **given)


@EVERY
def test_an_empty_tensor_stays_one(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (0, 4))
    assert merge(method, models, base, **given).shape == (0, 4)


@EVERY
def test_float64_is_merged_in_float64(method: str, given: dict[str, Any]) -> None:
    if method in ("della", "della_linear", "dare_ties", "dare_linear", "arcee_fusion"):
        given = given | ({"density": 1.0} if "density" in given else {})
    models, base = inputs(method, (9, 5), dtype="f8")
    made = merge(method, models, base, **given)
    narrow = merge(method, [one.astype("f4") for one in models], None if base is None else base.astype("f4"), **given)
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, narrow, atol=1e-5)


@EVERY
def test_arrays_of_torch_give_the_same(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (9, 5))
    made = merge(
        method, [torch.tensor(one) for one in models], None if base is None else torch.tensor(base), _xp=torch, **given
    )
    np.testing.assert_allclose(np.asarray(made), merge(method, models, base, **given), atol=1e-6)


@EVERY
def test_a_value_that_is_no_number_is_not_lost(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (9, 5))
    models[-1][3, 2] = np.nan
    if METHODS[method].held is not None and not METHODS[method].statistics:
        with pytest.raises(PlanError, match=rf"the change of model {len(models)} has NaN or infinite values"):
            merge(method, models, base, **given)
        given = given | {"matrices": False}
    with np.errstate(invalid="ignore"):
        assert np.isnan(merge(method, models, base, **given)[3, 2])


SAME = [(method, given) for method, given in VARIANTS if "rescale" not in given and method in ("linear", "slerp", "nuslerp", "multislerp", "karcher",
        "ties", "ram", "ramplus_tl", "sce", "model_stock", "arcee_fusion", "median", "trimmed_mean")]  # fmt: skip


@pytest.mark.parametrize(("method", "given"), SAME)
def test_models_that_are_the_same_merge_to_themselves(method: str, given: dict[str, Any]) -> None:
    models, base = inputs(method, (9, 5))
    dense = {"density": 1.0} if method == "ties" else {"select_topk": 1.0} if method == "sce" else {}
    if method == "arcee_fusion":
        base = models[0]
    made = merge(method, [models[0]] * len(models), base, **given | dense)
    np.testing.assert_allclose(made, models[0], atol=1e-6)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.base == "required"])
def test_models_that_are_the_base_merge_to_it(method: str) -> None:
    models, base = inputs(method, (9, 5))
    assert np.array_equal(merge(method, [base] * len(models), base, **NEEDED.get(method, {})), base)


EVEN = [
    name
    for name in METHODS
    if name not in ("slerp", "dare_linear", "dare_ties", "della", "della_linear", "knots_dare_ties", "tall_mask")
]


@pytest.mark.parametrize("method", [name for name in EVEN if METHODS[name].models[1] != 1])
def test_the_order_of_models_makes_no_difference(method: str) -> None:
    models, base = inputs(method, (9, 5))
    given = dict(NEEDED.get(method, {}))
    if "weight" in given or method == "nuslerp":
        given["weight"] = [0.5, 0.3, 0.2][: len(models)]
    turned = given | {key: value[::-1] for key, value in given.items() if isinstance(value, list)}
    made, other = merge(method, models, base, **given), merge(method, models[::-1], base, **turned)
    np.testing.assert_allclose(made, other, atol=1e-6)


@pytest.mark.parametrize("method", sorted(MIX | {"ties", "breadcrumbs_ties", "dare_ties", "della"}))
def test_a_model_without_weight_has_no_influence(method: str) -> None:
    models, base = inputs(method, (9, 5))
    given = {key: value for key, value in NEEDED.get(method, {}).items() if key != "weight"}
    two = merge(method, models[:2], base, weight=[0.5, 0.3], **given)
    three = merge(method, [*models[:2], 100 + models[2]], base, weight=[0.5, 0.3, 0.0], **given)
    np.testing.assert_allclose(two, three, atol=1e-6)


@pytest.mark.parametrize("method", sorted(MIX - {"linear"}))
def test_at_full_density_thinning_is_task_arithmetic(method: str) -> None:
    models, base = inputs(method, (9, 5))
    density = {} if method == "task_arithmetic" else {"density": 1.0}
    made = merge(method, models, base, weight=[0.5, 0.3, 0.2], **density)
    wanted = base + sum(w * (one - base) for w, one in zip((0.5, 0.3, 0.2), models, strict=True))
    np.testing.assert_allclose(made, wanted, atol=1e-6)


def test_at_full_density_ties_is_the_mean_of_those_that_agree() -> None:
    models, base = inputs("ties", (9, 5))
    deltas = np.stack([one - base for one in models])
    sign = np.where(deltas.sum(0) >= 0, 1, -1)
    agree = np.sign(deltas) == sign
    wanted = base + (deltas * agree).sum(0) / np.maximum(agree.sum(0), 1)
    np.testing.assert_allclose(merge("ties", models, base), wanted, atol=1e-6)


@pytest.mark.parametrize("limit", [1 << 20, 40])
def test_divergences_that_are_not_kept_are_computed_again(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models, base = inputs("arcee_fusion", (300, 20))
    kept = merge("arcee_fusion", models, base, limit=limit)
    monkeypatch.setattr(arcee_fusion, "MOST", 0)
    assert np.array_equal(merge("arcee_fusion", models, base, limit=limit), kept)
    assert 0 < np.count_nonzero(kept != base) < kept.size / 2


@pytest.mark.long
@pytest.mark.parametrize("columns", [5, 70_000])
@pytest.mark.parametrize("has_base", [True, False])
def test_columns_are_rows_turned(columns: int, has_base: bool) -> None:
    draw = np.random.RandomState(0)
    a, b, base = (draw.standard_normal((3, columns)).astype("f4") for _ in range(3))
    given = {"weight": [1.0, 2.0], "nuslerp_flatten": False}
    by_columns = merge("nuslerp", [a, b], base if has_base else None, limit=9, nuslerp_row_wise=True, **given)
    by_rows = merge("nuslerp", [a.T.copy(), b.T.copy()], base.T.copy() if has_base else None, **given)
    np.testing.assert_allclose(by_columns, by_rows.T, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_median_and_trimmed_mean_are_those_of_numpy(count: int) -> None:
    models = [np.random.RandomState(seed).standard_normal((5, 4)).astype("f4") for seed in range(count)]
    np.testing.assert_allclose(merge("median", models), np.median(models, axis=0), atol=1e-7)
    if count > 2:
        for trim in (0.0, 0.1, 0.3, 0.5):
            cut = 0 if not trim else min(max(1, int(trim * count)), (count - 1) // 2)
            wanted = np.sort(models, axis=0)[cut : count - cut].mean(axis=0)
            np.testing.assert_allclose(merge("trimmed_mean", models, trim=trim), wanted, atol=1e-6)


def test_one_bad_model_does_not_move_the_median() -> None:
    models = [np.full((3,), value, "f4") for value in (1.0, 1.1, 1e30)]
    assert math.isclose(float(merge("median", models)[0]), 1.1, rel_tol=1e-6)
