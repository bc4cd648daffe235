"""The methods against FusionBench's own results, recorded by ``make oracle-fusionbench``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ckptsurgeon.tensors.ops.regions import Array
from fixtures.fusionbench_cases import CASES, SHAPES, THIN, models, recorded

from ...helpers.merge_arrays import merge

MODELS, RECORDED = models(), recorded()


OTHER = {("tsv_m_three", THIN): "FusionBench merges no singular vector: see the test below"}
"""Where ckpt does something else."""


def ours(name: str, key: str, dtype: str) -> Array:
    """The change that ckpt makes, computed in ``dtype``; the base is zero, so that nothing is rounded when it is added."""
    case = CASES[name]
    base = MODELS[case.base][key]
    changes = [(MODELS[model][key] - base).astype(dtype) for model in case.models]
    return merge(case.method, changes, np.zeros_like(changes[0]), **case.parameters)


def error(made: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest magnitude."""
    return float(np.max(np.abs(made.astype("f8") - wanted)) / np.max(np.abs(wanted)))


@pytest.mark.parametrize(("dtype", "bound"), [("f4", 1e-5), ("f8", 1e-10)])
@pytest.mark.parametrize("key", SHAPES)
@pytest.mark.parametrize("name", CASES)
def test_results_equal_fusionbenchs(name: str, key: str, dtype: Any, bound: float) -> None:
    if CASES[name].method == "wudi" and len(SHAPES[key]) == 2:
        pytest.skip("FusionBench stops before it reaches the minimum: see the tests below")
    if (name, key) in OTHER:
        pytest.skip(OTHER[name, key])
    made, wanted = ours(name, key, dtype), RECORDED[name][key]
    assert (made.dtype, made.shape) == (np.dtype(dtype), wanted.shape)
    assert error(made, wanted) <= bound


def test_fusionbench_leaves_a_matrix_as_it_was_that_has_fewer_rows_than_there_are_models() -> None:
    """It takes the part 1/3 of two singular values, which it rounds to none; ckpt takes one of each model."""
    assert not RECORDED["tsv_m_three"][THIN].any()
    assert ours("tsv_m_three", THIN, "f8").any()


# WUDI: FusionBench takes steps of Adam towards a minimum, ckpt computes it.


def wudi_loss(made: Array, name: str, key: str) -> float:
    """What WUDI minimises, by its definition in the paper."""
    base, total = MODELS["base"][key], 0.0
    for model in CASES[name].models:
        change = MODELS[model][key] - base
        total += float(np.sum(((made - change) @ change.T) ** 2) / np.sum(change**2))
    return total


MATRICES = [key for key, shape in SHAPES.items() if len(shape) == 2]


@pytest.mark.parametrize("key", MATRICES)
@pytest.mark.parametrize("name", ["wudi", "wudi_three", "wudi_long"])
def test_no_steps_of_adam_lead_below_the_minimum(name: str, key: str) -> None:
    base = MODELS["base"][key]
    start = sum(MODELS[model][key] - base for model in CASES[name].models)
    made, theirs = ours(name, key, "f8"), RECORDED[name][key]
    assert wudi_loss(made, name, key) <= wudi_loss(theirs, name, key) < wudi_loss(np.asarray(start), name, key)


@pytest.mark.parametrize("key", MATRICES)
def test_many_steps_of_adam_come_near_to_it(key: str) -> None:
    made, few, many = ours("wudi_long", key, "f8"), RECORDED["wudi_three"][key], RECORDED["wudi_long"][key]
    least, near, far = (wudi_loss(one, "wudi_long", key) for one in (made, many, few))
    assert near - least < 1e-3 * (far - least)
    if key != THIN:  # three changes of two rows do not decide all of seven columns, and Adam ends at another minimum
        assert np.linalg.norm(many - made) < 0.02 * np.linalg.norm(made)
