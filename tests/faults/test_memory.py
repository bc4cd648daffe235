"""Little memory: a limit of the address space, and a control group that kills who takes more."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ckptsurgeon.cli.failing import is_for_memory

from ..promises.clauses import MEMORY, clause
from .disks import needs
from .outputs import CHECKPOINTS, Output, World, each

pytestmark = clause(MEMORY)

LARGE = 256 << 20
"""Bytes of a source, more than a run may have."""

GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def large(world: World) -> World:
    """Sources that are larger than the memory, of tensors that are, too."""
    _write_large()
    return world


@pytest.fixture
def large_on_a_disk(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same on a disk: what is written to tmpfs is memory of the control group, which cannot be given up."""
    above = next((path for path in (tmp_path, tempfile.gettempdir(), "/var/tmp") if not _is_in_memory(path)), None)
    if above is None:
        pytest.skip(reason="all folders for temporary files are in memory here")
    with tempfile.TemporaryDirectory(dir=above) as folder:
        monkeypatch.chdir(folder)
        _write_large()
        place = Path(folder, "place")
        place.mkdir()
        yield world.at(place)


def _is_in_memory(path: str | Path) -> bool:
    found = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return found.stdout.strip() in ("tmpfs", "ramfs")


def _write_large() -> None:
    for turn, value in (("old", 0.0), ("new", 1.0)):
        a = torch.zeros(LARGE // 8)
        a[0] = value
        torch.save({"a": a, "b": torch.ones(LARGE // 8), "h": torch.randn(1000), "i": torch.randn(9)}, f"{turn}.pth")
    Path("dst.yaml").write_text("model: {like: old.pth}\n")


@each(CHECKPOINTS)
@pytest.mark.parametrize("part", [1, pytest.param(12, marks=pytest.mark.faults)], ids=["not enough", "steps"])
def test_too_little_address_space_is_an_error_and_keeps_what_was_there(part: int, output: Output, world: World) -> None:
    needs("prlimit")
    world.written(output, "old")
    for step in range(part):
        limit = (38 + 10 * step) << 20  # some 100 kB below what suffices, at 40 MB, even CPython may end in a fault
        done = world.run(output, "new", "prlimit", f"--as={limit}")
        if done.returncode == 0:
            break
        assert "Traceback" not in done.stderr
        assert done.returncode in (1, 3, 5, 70), done.stderr  # 1 of OpenBLAS itself, 70 of C code that does not say why
        late = " is written. " in done.stderr  # the memory ran out while the receipt was shown
        assert output.state(world) == ("new" if late else "old"), (limit, done)
        assert len(world.temps()) <= 1  # OpenBLAS ends the process itself, as a kill does
    world.settle(output)


@pytest.mark.faults
@each(CHECKPOINTS)
def test_a_source_is_larger_than_the_address_space(output: Output, large: World) -> None:
    needs("prlimit")
    large.written(output, "old")
    large.hold(output, large.run(output, "new", "prlimit", f"--as={LARGE - (16 << 20)}"), [0], ["new"])


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 128 MiB; what is in the page cache counts, and is given up first."""
    group = GROUPS / f"ckptsurgeon-test-{os.getpid()}"  # another process of pytest may have one at the same time
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(128 << 20))
    except OSError as error:
        pytest.skip(reason=f"there are no control groups of memory here: {error.strerror}")
    yield group
    group.rmdir()


@pytest.mark.faults
@each(CHECKPOINTS)
def test_a_source_is_larger_than_a_control_group(output: Output, large_on_a_disk: World, group: Path) -> None:
    joining = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    for turn in ("old", "new"):
        done = large_on_a_disk.run(output, turn, "sh", "-c", joining, "sh")
        large_on_a_disk.hold(output, done, [0], [turn])
    assert os.path.getsize("new.pth") > LARGE


def test_an_import_that_ends_without_an_exception_is_for_memory() -> None:
    """CPython 3.11 ended so once, at an import under a limit of 40 MiB; no input of a user makes it happen."""
    assert is_for_memory(SystemError("error return without exception set"))
    assert not is_for_memory(SystemError("bad argument to internal function"))
