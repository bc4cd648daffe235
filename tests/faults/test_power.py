"""Power cuts: the file system is shut down without writing anything more, unmounted and mounted again."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess

import pytest

from ..helpers.disk import SYNCS
from ..promises.clauses import POWER, clause
from .conftest import Mount
from .outputs import CHECKPOINTS, OUTPUTS, Output, World, each

pytestmark = [pytest.mark.faults, clause(POWER)]

KINDS = {"ext4": 64, "xfs": 320}
"""Megabytes of an image; XFS is made of no fewer than 300."""

DURABLE = [one for one in OUTPUTS if one.name != "cache of the hub"]
"""The hub's client does not flush its cache; what is damaged there is fetched again."""


@pytest.fixture(autouse=True)
def _waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some outputs are written by this process, or by a fork of it."""
    for name, real in SYNCS.items():
        monkeypatch.setattr(os, name, real)


@pytest.mark.parametrize("kind", KINDS)
@each(DURABLE)
def test_what_was_written_is_there_after_a_cut(output: Output, kind: str, world: World, mount: Mount) -> None:
    disk = mount(kind, mb=KINDS[kind])
    cut = world.at(disk.place)
    for turn in (output.before, "new"):
        if turn:
            cut.written(output, turn)
            disk.cut()
            disk.again()
            assert output.state(cut) == turn
    cut.settle(output)


@pytest.mark.parametrize("kind", KINDS)
@each(OUTPUTS)
def test_a_cut_at_a_random_moment_leaves_the_old_or_the_new(
    output: Output, kind: str, world: World, mount: Mount
) -> None:
    disk = mount(kind, mb=KINDS[kind])
    cut = world.at(disk.place)
    draw = random.Random(f"{output.name} {kind}")
    longest = 3.0 if output.name == "training" else 0.8
    if output.before:
        cut.written(output, output.before)
    for _ in range(4):
        process = subprocess.Popen(
            output.command("new", cut), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=cut.environment()
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.1, longest))
        disk.cut()
        _, said = process.communicate()
        assert process.returncode in (0, 3, 5), said
        assert b"Traceback" not in said, said
        disk.again()
        if output in DURABLE:
            assert output.state(cut) in (*(("old", "new") if output.before else ("", "old", "new")), *output.torn)
    cut.settle(output)


@pytest.mark.parametrize("kind", KINDS)
@each(CHECKPOINTS)
def test_a_cut_after_a_kill_leaves_the_old_or_the_new(output: Output, kind: str, world: World, mount: Mount) -> None:
    disk = mount(kind, mb=KINDS[kind])
    cut = world.at(disk.place)
    cut.written(output, "old")
    for after in (0.25, 0.3, 0.35, 0.4):
        process = subprocess.Popen(
            output.command("new", cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=cut.environment()
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.kill()
        process.wait()
        disk.cut()
        disk.again()
        assert output.state(cut) in ("old", "new")
    cut.settle(output)
