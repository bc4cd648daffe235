"""The curves of a run: of too many points, some are left out, but never the last evaluation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ckptsurgeon.analysis.page import runs


@pytest.mark.parametrize("number", range(1, 40))
def test_of_many_evaluations_the_last_is_kept(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "POINTS", 2)
    curves = runs.Curves()
    for step in range(number):
        curves.add({"step": step, "dev": {"cer": 0.5}})
    steps = [step for step, _ in curves.to_json()["evaluations"]]
    assert (steps[0], steps[-1]) == (0, number - 1)
    assert min(number, 3) <= len(steps) <= 5
    assert len({later - step for step, later in pairwise(steps[:-1])}) <= 1
