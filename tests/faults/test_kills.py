"""Runs that are killed: at every call to the kernel that changes something, and at random moments."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from ..promises.clauses import KILLED, clause
from .outputs import CALLS, CHECKPOINTS, OUTPUTS, SIGNED, Output, World, each
from .tracing import fault, traced, watch

pytestmark = clause(KILLED)

MOST = 6
"""A call is killed at its first, second … time, up to this."""


def cases() -> list[Any]:
    """Every call by which a checkpoint is written where nothing was, and over another."""
    return [
        pytest.param(output, call, over, id=f"{call} {output.name} {'over another' if over else 'first'}")
        for output in (*CHECKPOINTS, *SIGNED)
        for over in (False, True)
        for call in sorted(CALLS[output.name][over])
    ]


@pytest.mark.faults
@pytest.mark.parametrize(("output", "call", "over"), cases())
def test_killed_at_a_call_there_is_the_old_or_the_new(
    output: Output, call: str, over: bool, world: World, tmp_path: Path
) -> None:
    traced()
    if over:
        world.written(output, "old")
    killed = 0
    for when in range(1, MOST + 1):
        done = world.run(output, "new", *fault(tmp_path / "log", call, "signal=KILL", str(when)))
        killed += done.returncode == -signal.SIGKILL
        assert output.state(world) in (["old", "new", *output.torn] if over else ["", "new", *output.torn])
        assert len(world.temps()) <= 1 + len(output.torn), world.temps()
        if done.returncode == 0:
            break
        if output.state(world) not in ("", "old"):
            world.written(output, "old")
            over = True
    assert killed
    world.settle(output)


@pytest.mark.parametrize("turns", [2, pytest.param(12, marks=pytest.mark.faults)], ids=["twice", "many times"])
@each(OUTPUTS)
def test_killed_at_a_random_moment_there_is_the_old_or_the_new(output: Output, turns: int, world: World) -> None:
    draw = random.Random(f"{output.name} {turns}")
    longest = 0.5 if output.name == "training" else 0.1
    if output.before:
        world.written(output, output.before)
    for _ in range(turns):
        killed(output, world, draw.uniform(0, longest))
        assert output.state(world) in (*(("old", "new") if output.before else ("", "old", "new")), *output.torn)
    world.settle(output)


def killed(output: Output, world: World, after_s: float) -> None:
    """Begin to write what is new, and kill it so many seconds later."""
    process = world.started(output, "new")
    process.wait(after_s)
    process.kill()


LAST = 3
"""Writes before the end that are tried: the recipe's and the signature's are among them."""


@pytest.mark.faults
@each(SIGNED)
def test_killed_between_the_recipe_and_the_signature_nothing_passes_for_signed(
    output: Output, world: World, tmp_path: Path
) -> None:
    traced()
    world.written(output, "old")
    assert world.run(output, "new", *watch(tmp_path / "log", ["pwrite64"])).returncode == 0
    number = sum(file.read_text().count("pwrite64(") for file in (tmp_path / "log").iterdir())
    for when in range(number - LAST + 1, number + 1):
        world.written(output, "old")  # and no part of what is new is left
        done = world.run(output, "new", *fault(tmp_path / "log", "pwrite64", "signal=KILL", str(when)))
        assert done.returncode == -signal.SIGKILL
        assert output.state(world) == "old"
    world.settle(output)
