"""Sources that cannot be read: a file system in user space answers with errors, or with less than it was asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..helpers.waiting import wait_until
from ..promises.clauses import UNREADABLE, clause
from .disks import needs
from .outputs import CHECKPOINTS, CKPT, Output, World, each

pytestmark = [pytest.mark.faults, clause(UNREADABLE)]

SERVER = Path(__file__).with_name("broken_files.py")
GOOD = 300_000
"""Bytes of a file that can be read; behind them is the fault."""


@pytest.fixture(params=["EIO", "ESTALE", "short"])
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The working directory's files, broken behind their first bytes."""
    pytest.importorskip(
        "mfusepy", reason="mfusepy is not installed (make test-faults installs it)", exc_type=ImportError
    )
    needs("fusermount3")
    place = tmp_path / "broken"
    place.mkdir()
    server = subprocess.Popen([sys.executable, str(SERVER), str(tmp_path), str(place), request.param, str(GOOD)])
    try:
        wait_until(lambda: place.is_mount() or server.poll() is not None)
        if server.poll() is not None:
            pytest.skip(reason="mounting in user space is not allowed here")
        yield place
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(place)], capture_output=True)
        server.wait(10)


@each(CHECKPOINTS)
def test_a_source_that_breaks_off_leaves_what_was_there(output: Output, broken: Path, world: World) -> None:
    world.written(output, "old")
    command = [word.replace("new.pth", str(broken / "new.pth")) for word in output.command("new", world)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    world.hold(output, done, [3], ["old"])
    assert "new.pth" in done.stderr
    world.settle(output)


@pytest.mark.parametrize(
    "verb",
    [["inspect", "--stats"], ["diff", "--values", "old.pth"], ["scan"], ["fetch", "--dir", "got"]],
    ids=lambda v: v[0],
)
def test_a_verb_that_reads_says_which_file(verb: list[str], broken: Path, world: World) -> None:
    done = subprocess.run(
        [*CKPT, verb[0], str(broken / "new.pth"), *verb[1:]], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in ([1, 3] if verb[0] == "scan" else [3]), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert "new.pth" in done.stderr + done.stdout
    assert not Path("got/new.pth").exists()
