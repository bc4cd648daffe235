"""Two runs that write the same output at the same time: one whole result, the other whole too or a clear error."""

from __future__ import annotations

import subprocess

import pytest

from ..promises.clauses import WRITERS, clause
from .outputs import OUTPUTS, Output, World, each, said

pytestmark = clause(WRITERS)


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.faults)], ids=["once", "many times"])
@each(OUTPUTS)
def test_two_writers_leave_one_whole_result(output: Output, rounds: int, world: World) -> None:
    for _ in range(rounds):
        turns = ["old", "new"] if output.before else ["new", "new"]
        both = [
            subprocess.Popen(
                output.command(turn, world), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env=world.environment(),
            )
            for turn in turns
        ]  # fmt: skip
        ends = [(run.communicate(timeout=60)[1], run.returncode) for run in both]
        assert all("Traceback" not in text for text, _ in ends), ends
        assert all((code != 0) == said(text) for text, code in ends), ends
        assert any(code == 0 for _, code in ends), ends
        assert all(code in (0, 2, 4, 5) for _, code in ends), ends
        assert output.state(world) in turns
        assert not world.temps()
    world.settle(output)
