"""Runs that are killed: at every call to the kernel that changes something, and at random moments."""

from __future__ import annotations

import contextlib
import random
import subprocess

import pytest

from ..promises.clauses import KILLED, clause
from .outputs import CHECKPOINTS, OUTPUTS, Output, World, each
from .tracing import fault, traced

pytestmark = clause(KILLED)

CALLS = ("pwrite64", "copy_file_range", "fsync", "flock", "rename", "renameat2", "link", "unlink", "mkdir", "fallocate")
MOST = 6
"""A call is killed at its first, second … time, up to this."""


@pytest.mark.faults
@each(CHECKPOINTS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("first", [True, False], ids=["first", "over another"])
def test_killed_at_a_call_there_is_the_old_or_the_new(first: bool, call: str, output: Output, world: World) -> None:
    traced()
    if not first:
        world.written(output, "old")
    for when in range(1, MOST + 1):
        done = world.run(output, "new", *fault(call, "signal=KILL", str(when)))
        assert output.state(world) in (["", "new"] if first else ["old", "new"])
        assert len(world.temps()) <= 1, world.temps()
        if done.returncode == 0:
            break
        if output.state(world) == "new":
            world.written(output, "old")
            first = False
    world.settle(output)


@pytest.mark.parametrize("turns", [2, pytest.param(12, marks=pytest.mark.faults)], ids=["twice", "many times"])
@each(OUTPUTS)
def test_killed_at_a_random_moment_there_is_the_old_or_the_new(output: Output, turns: int, world: World) -> None:
    draw = random.Random(f"{output.name} {turns}")
    longest = 3.0 if output.name == "training" else 0.8
    if output.before:
        world.written(output, output.before)
    for _ in range(turns):
        killed(output, world, draw.uniform(0.1, longest))
        assert output.state(world) in (("old", "new") if output.before else ("", "old", "new"))
    world.settle(output)


def killed(output: Output, world: World, after_s: float) -> None:
    """Begin to write what is new, and kill it so many seconds later."""
    process = subprocess.Popen(
        output.command("new", world), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=world.environment()
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    process.kill()
    process.wait()
