"""Runs side by side: none is far ahead of another, one that fails stops the others, and figures are sums."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import pytest

from ckptsurgeon.api.merge import lockstep
from ckptsurgeon.api.merge.lockstep import in_lockstep
from ckptsurgeon.errors import CheckpointError, PlanError

Progress = Callable[[int, int], None]
TOTAL = 200


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "AHEAD", 10)


def test_no_run_is_far_ahead_of_the_slowest() -> None:
    done, furthest = [0, 0, 0], [0]

    def run_of(index: int, step: int) -> Callable[[Progress], int]:
        def run(advance: Progress) -> int:
            for at in range(step, TOTAL + 1, step):
                done[index] = at
                furthest[0] = max(furthest[0], at - min(done))
                advance(at, TOTAL)
            done[index] = TOTAL
            return index

        return run

    assert in_lockstep([run_of(0, 1), run_of(1, 2), run_of(2, 5)]) == [0, 1, 2]
    assert furthest[0] <= 10 + 5  # a run stands still after the step that took it too far


def test_a_run_that_has_ended_keeps_nobody_waiting() -> None:
    def short(advance: Progress) -> None:
        advance(1, 1)

    def long(advance: Progress) -> None:
        for at in range(TOTAL):
            advance(at, TOTAL)

    in_lockstep([short, long, short])


def test_an_error_stops_the_others_and_is_the_one_that_is_raised() -> None:
    stopped, waits, ended = list[str](), Event(), Event()

    def fails(advance: Progress) -> None:
        waits.wait(60)
        raise PlanError("the third block is damaged.")

    def waiting(advance: Progress) -> None:
        try:
            waits.set()
            for at in range(TOTAL):
                advance(at, TOTAL)
        except CheckpointError as error:
            stopped.append(str(error))
            ended.set()
            raise

    def slowest(advance: Progress) -> None:  # for which the others wait: only an error ends them before it does
        ended.wait(10)
        advance(TOTAL, TOTAL)

    with pytest.raises(PlanError, match="the third block is damaged"):
        in_lockstep([waiting, fails, waiting, slowest])
    assert len(stopped) == 2
    assert all("another output of this run failed" in one for one in stopped)


def test_progress_is_the_sum_of_all() -> None:
    seen: list[tuple[int, int]] = []

    def run(advance: Progress) -> None:
        for at in range(5, TOTAL + 1, 5):
            advance(at, TOTAL)

    in_lockstep([run, run, run], lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3 * TOTAL, 3 * TOTAL)
    assert sorted(done for done, _ in seen) == [done for done, _ in seen]
