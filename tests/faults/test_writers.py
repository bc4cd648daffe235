"""Two runs that write the same output at the same time: one whole result, the other whole too or a clear error."""

from __future__ import annotations

import shutil
from itertools import combinations

import pytest

from ..helpers.forked import ckpt_forked
from ..promises.clauses import WRITERS, clause
from .outputs import OUTPUTS, SHARDS, TURNS, Output, World, Written, each, said

pytestmark = clause(WRITERS)


FOLDERS = {"shards": SHARDS, "pth shards": ("--to", "pth", *SHARDS), "DCP": ("--to", "dcp")}


@pytest.mark.parametrize("rounds", [1, pytest.param(6, marks=pytest.mark.faults)], ids=["once", "many times"])
@each(OUTPUTS)
def test_two_writers_leave_one_whole_result(output: Output, rounds: int, world: World) -> None:
    for _ in range(rounds):
        turns = ["old", "new"] if output.before else ["new", "new"]
        both = [world.started(output, turn) for turn in turns]
        ends = [(run.ended(), run.err) for run in both]
        assert all("Traceback" not in text for _, text in ends), ends
        assert all((code != 0) == said(text) for code, text in ends), ends
        assert any(code == 0 for code, _ in ends), ends
        assert all(code in (0, 2, 4, 5) for code, _ in ends), ends
        assert output.state(world) in turns
        assert not world.temps()
    world.settle(output)


@pytest.mark.parametrize("rounds", [1, pytest.param(25, marks=pytest.mark.faults)], ids=["once", "many times"])
@pytest.mark.parametrize("force", [False, pytest.param(True, marks=pytest.mark.long)], ids=["new", "over another"])
@pytest.mark.parametrize("formats", list(combinations(FOLDERS, 2)), ids=lambda pair: " and ".join(pair))
def test_two_writers_of_one_folder_in_two_formats_leave_no_mixture(
    formats: tuple[str, str], force: bool, rounds: int, world: World
) -> None:
    output = Written("folder", "folder")
    for _ in range(rounds):
        if not force and (world.place / "folder").exists():
            shutil.rmtree(world.place / "folder")
        options = ["-o", str(world.place / "folder"), *(["--force"] if force else [])]
        both = [
            ckpt_forked("convert", f"{turn}.pth", *FOLDERS[name], *options, environment=world.environment())
            for name, turn in zip(formats, TURNS, strict=True)
        ]
        ends = [(run.ended(), run.err) for run in both]
        assert sorted(code for code, _ in ends) in ([0, 5], [0, 0] if force else [0, 5]), ends
        assert all((code != 0) == said(text) for code, text in ends), ends
        assert output.state(world) in [turn for turn, (code, _) in zip(TURNS, ends, strict=True) if code == 0]
        assert not world.temps()
    assert not list(world.place.rglob("*.ckpt-lock"))
