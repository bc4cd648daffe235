"""The same bytes on every file system, and across two: where files share their blocks, and where they cannot."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ..promises.clauses import REFLINKS, clause
from .conftest import Mount
from .outputs import CHECKPOINTS, World, Written, each

pytestmark = [pytest.mark.faults, clause(REFLINKS)]

SIZES = {"tmpfs": 16, "ext4": 64, "xfs": 320, "btrfs": 120}


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("place", SIZES)
@each(CHECKPOINTS)
def test_the_bytes_are_the_same(
    output: Written, place: str, source: str, world: World, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.written(output, "new")
    written = tensors(output, world)
    there = mount(place, mb=SIZES[place]).place
    work = there / "sources" if source == place else mount(source, mb=SIZES[source]).place / "sources"
    work.mkdir()
    for name in ("old.pth", "new.pth", "dst.yaml"):
        shutil.copy(name, work / name)
    (there / "place").mkdir()
    monkeypatch.chdir(work)
    other = world.at(there / "place")
    for turn in ("old", "new"):
        other.written(output, turn)
    monkeypatch.chdir(Path("/"))
    assert tensors(output, other) == written


def tensors(output: Written, world: World) -> dict[str, str]:
    """The SHA-256 of each tensor's bytes; the recipe beside them names other folders."""
    found = cs.open_checkpoint(world.place / output.path)
    return {key: hashlib.sha256(found.tensor(key).numpy().tobytes()).hexdigest() for key in found}
