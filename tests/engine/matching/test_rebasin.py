"""Weight matching against Git Re-Basin's own code, recorded by ``fixtures/record_rebasin.py``."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

import ckptsurgeon as cs
from ckptsurgeon.engine.matching.matching import match
from ckptsurgeon.planning.aligning.groups import OWN, Group, Part
from fixtures.rebasin_cases import CASES, State, models, recorded

RECORDED = recorded()
DETERMINED = [case for case in CASES if case.startswith("one ") or "planted" in case]
"""With one hidden layer a single assignment is the optimum; a network in another order has an obvious one."""


def orders(first: State, other: State) -> list[list[int]]:
    groups = [
        Group(
            f"hidden{at}", OWN, len(first[f"{at}.bias"]),
            (Part((f"{at}.weight",), 0), Part((f"{at}.bias",), 0), Part((f"{at + 1}.weight",), 1)),
        )
        for at in range(len(first) // 2 - 1)
    ]  # fmt: skip
    with cs.open_checkpoint(first) as reference, cs.open_checkpoint(other) as model:
        return [list(one.order) for one in match(reference, model, groups, 1 << 26)]


def gain(first: State, other: State, found: list[list[int]]) -> float:
    """How much the sum of the inner products of all tensors grows if the units of the other get the found order."""
    made = dict(other)
    for at, order in enumerate(found):
        for key in (f"{at}.weight", f"{at}.bias"):
            made[key] = made[key][order]
        made[f"{at + 1}.weight"] = made[f"{at + 1}.weight"][:, order]
    return sum(float(np.vdot(first[key].astype("f8"), made[key].astype("f8") - other[key])) for key in first)


@pytest.mark.parametrize("case", DETERMINED)
def test_orders_that_are_determined_are_git_re_basins(case: str) -> None:
    assert orders(*models(case)) == RECORDED[case]


def test_local_optima_are_as_good_as_git_re_basins() -> None:
    """Both end in a local optimum; Git Re-Basin visits the layers in a random order, and ckpt in a fixed one."""
    shares = []
    for case in set(CASES) - set(DETERMINED):
        first, other = models(case)
        shares.append(gain(first, other, orders(first, other)) / gain(first, other, RECORDED[case]))
    assert min(shares) > 0.9
    assert statistics.mean(shares) > 1
