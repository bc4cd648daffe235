"""A disk that fills up, a device that is always full, files that may not grow."""

from __future__ import annotations

import os
import subprocess

import pytest

from ..promises.clauses import FULL, clause
from .conftest import Mount
from .outputs import CKPT, OUTPUTS, SIGNED, Output, World, each, listing

pytestmark = clause(FULL)


@pytest.mark.faults
@each(OUTPUTS)
def test_a_disk_that_is_full_keeps_what_was_there(output: Output, world: World, mount: Mount) -> None:
    disk = mount("tmpfs", mb=8)
    full = world.at(disk.place)
    if output.before:
        full.written(output, output.before)
    filler = disk.fill(left=400_000)
    before = listing(disk.place)
    done = full.run(output, "new")
    full.hold(output, done, [5], ["old"] if output.before or output.name == "training" else [""])
    assert "no space left" in done.stderr or "are free" in done.stderr
    if output.before:
        assert listing(disk.place) == before
    filler.unlink()
    full.settle(output)


@pytest.mark.faults
@each(SIGNED)
def test_a_disk_that_is_full_when_it_is_signed_keeps_what_was_there(output: Output, world: World, mount: Mount) -> None:
    """The space of tensors is reserved; that of recipe, index and signature shows only as they are written."""
    disk = mount("tmpfs", mb=8)
    full = world.at(disk.place)
    before = disk.free
    full.written(output, "old")
    taken = before - disk.free
    ends = []
    for pages in range(-3, 4):
        filler = disk.fill(left=taken + pages * os.sysconf("SC_PAGE_SIZE"))
        done = full.run(output, "new")
        full.hold(output, done, [0, 5], ["old", "new"])
        ends.append(done.returncode)
        filler.unlink()
        full.written(output, "old")
    assert (ends[0], ends[-1]) == (5, 0), ends
    full.settle(output)


@pytest.mark.long
@each([one for one in OUTPUTS if one.before])
def test_a_file_that_may_not_grow_keeps_what_was_there(output: Output, world: World) -> None:
    world.written(output, "old")
    before = listing(world.place)
    run = world.started(output, "new", largest=300_000)
    done = subprocess.CompletedProcess([], run.ended(), "", run.err)
    world.hold(output, done, [5], ["old"])
    assert "larger than is allowed" in done.stderr
    assert listing(world.place) == before
    world.settle(output)


@pytest.mark.parametrize("to", ["file", "link"])
def test_a_device_is_no_place_for_a_checkpoint(to: str, world: World) -> None:
    place = "/dev/full"
    if to == "link":
        place = str(world.place / "out.safetensors")
        (world.place / "out.safetensors").symlink_to("/dev/full")
    command = [*CKPT, "transplant", "new.pth", "dst.yaml", "-o", place, "--to", "safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["inspect", "new.pth", "--json"], ["inspect", "new.pth"], ["-h"], ["scan", "new.pth"]]
)
def test_an_answer_that_cannot_be_written_is_no_success(command: list[str], world: World) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*CKPT, *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "no space left" in done.stderr.lower()
