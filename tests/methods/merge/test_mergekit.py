"""The methods against mergekit's own results, recorded by ``make oracle-mergekit``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.errors import CheckpointError, PlanError
from ckptsurgeon.tensors.ops.regions import Array
from fixtures.fusionbench_cases import CASES as FUSIONBENCH
from fixtures.mergekit_cases import CASES, GOLDEN, Case, models, recorded

from ...helpers.merge_arrays import METHODS, merge

MODELS, RECORDED = models(), recorded()

TIED = "quarters.weight"
"""Of equal magnitudes mergekit keeps those that torch's unstable sort, another on each processor, puts first."""
OPPOSITE = "opposite.weight"
"""Between a and b of it there are many arcs: there mergekit divides by what float32 leaves of the sine of pi."""


REFUSED = {"task_arithmetic_no_weight": "the weights sum to zero"}
"""What mergekit gives and we do not: it leaves a sum undivided where normalising was asked for."""


def thinned(case: Case) -> bool:
    """Whether a case keeps a share of the elements by magnitude."""
    shares = case.parameters.get("density", case.parameters.get("select_topk", 1.0))
    return any(0 < share < 1 for share in (shares if isinstance(shares, list) else [shares]))


def many_arcs(case: Case) -> bool:
    return case.method in ("nuslerp", "karcher") and {"a", "b"} <= {*case.models}


def ours(case: Case, key: str, limit: int) -> Array:
    base = None if case.base is None else MODELS[case.base][key]
    return merge(case.method, [MODELS[name][key] for name in case.models], base, limit=limit, **case.parameters)


def error(made: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest magnitude."""
    return float(np.max(np.abs(made.astype("f8") - wanted)) / max(float(np.max(np.abs(wanted))), 1e-30))


def test_every_method_that_mergekit_has_is_recorded() -> None:
    others = METHODS.keys() - {case.method for case in CASES.values()}
    assert others - {case.method for case in FUSIONBENCH.values()} == {
        "aim", "knots_dare_ties", "median", "trimmed_mean", "pcb", "fisher", "regmean", "regmean_plusplus",
    }  # fmt: skip


@pytest.mark.parametrize("limit", [1 << 20, 24])
@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_results_equal_mergekits(name: str, limit: int) -> None:
    case, compared = CASES[name], 0
    for key, wanted in RECORDED[name].items():
        if (key == TIED and thinned(case)) or (key == OPPOSITE and many_arcs(case)):
            continue
        made = ours(case, key, limit)
        assert made.dtype == np.float32
        assert made.shape == wanted.shape
        assert error(made, wanted) <= 1e-6, key
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", REFUSED)
def test_what_mergekit_leaves_undone_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match=REFUSED[name]):
        ours(CASES[name], "linear.weight", 24)


@pytest.mark.parametrize("name", ["ties_one", "breadcrumbs_one"])
def test_of_equal_magnitudes_as_many_are_kept_as_mergekit_keeps(name: str) -> None:
    base = MODELS["base"][TIED]
    made, wanted = (
        np.sort(np.abs(one - base), axis=None) for one in (ours(CASES[name], TIED, 7), RECORDED[name][TIED])
    )
    assert np.array_equal(made, wanted)


EDGES: list[dict[str, Any]] = json.loads((GOLDEN / "edges.json").read_text())


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge['method']}-{EDGES.index(edge)}")
def test_edges_end_as_mergekits_or_say_why_not(edge: dict[str, Any]) -> None:
    tensors = [np.array(values, "f4") for values in edge["tensors"]]
    base = tensors.pop(0) if edge["base"] and edge["method"] != "slerp" else None
    wanted = np.array(edge.get("gives", ["nan"]), "f8")
    if not np.isfinite(wanted).all():
        with pytest.raises(CheckpointError):
            merge(edge["method"], tensors, base, **edge["parameters"])
    elif len(tensors) >= METHODS[edge["method"]].models[0]:
        made = merge(edge["method"], tensors, base, **edge["parameters"])
        np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-6 * max(1e-3, np.abs(wanted).max()))
