"""Calls to the kernel that fail, one after the other; that they did is read from the log of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..promises.clauses import FAILING, OTHERWISE, clause
from .outputs import CALLS, CHECKPOINTS, OUTPUTS, Output, World, each
from .tracing import calls_in, fault, traced, watch

FAILS = {
    "copy_file_range": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT"),
    "write": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "flock": ("EIO",),
    "rename": ("EIO", "EACCES"),
    "link": ("EIO", "EACCES"),
    "mkdir": ("EACCES", "ENOSPC"),
    "renameat2": ("EIO",),
    "fallocate": ("ENOSPC", "EIO"),
}
LACKS = {
    "copy_file_range": ("EINTR", "EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL"),
    "fsync": ("EOPNOTSUPP", "EINVAL", "EINTR"),
    "flock": ("ENOSYS", "ENOLCK"),
    "fallocate": ("EOPNOTSUPP", "EINTR", "ENOSYS"),
    "sync_file_range": ("ESPIPE", "ENOSYS"),
}
NOTHING_BEFORE = {"link"}
"""Calls that are made only where nothing was there before."""


def cases(of: dict[str, tuple[str, ...]], *, over: bool) -> list[Any]:
    """Every error for checkpoints, the first of each call for the rest, which take longer."""
    return [
        pytest.param(call, error, output, id=f"{call} {error} {output.name}")
        for output in OUTPUTS
        for call, errors in of.items()
        for error in (errors if output in CHECKPOINTS else errors[:1])
        if call in CALLS[output.name][over and bool(output.before) and call not in NOTHING_BEFORE]
    ]


@pytest.mark.faults
@each(OUTPUTS)
def test_these_are_the_calls_by_which_an_output_is_written(output: Output, world: World, tmp_path: Path) -> None:
    traced()
    for made in CALLS[output.name] if output.before else CALLS[output.name][:1]:
        done = world.run(output, "new", *watch(tmp_path / "log", {*FAILS, *LACKS, "unlink", "unlinkat"}))
        assert (done.returncode, calls_in(tmp_path / "log", world.place)) == (0, made), done.stderr
        if output.before:
            world.written(output, output.before)


@pytest.mark.faults
@clause(FAILING)
@pytest.mark.parametrize(("call", "error", "output"), cases(FAILS, over=True))
def test_a_call_that_fails_keeps_what_was_there(
    call: str, error: str, output: Output, world: World, tmp_path: Path
) -> None:
    traced()
    before = output.before if call not in NOTHING_BEFORE else ""
    if before:
        world.written(output, before)
    failed = set()
    for when in ("1", "2", "3+"):
        done = world.run(output, "new", *fault(tmp_path / "log", call, f"error={error}", when))
        failed |= calls_in(tmp_path / "log", world.place, injected=True)
        # Other calls of that name than ours, such as Python's for compiled files, may fail without harm.
        states = [*output.torn, *(["old", "new"] if before else ["", "old", "new"])]
        mute = (
            call == "write"
        )  # that is how errors are said, too; and how the process that checks a run answers: exit 1
        codes = [0, 1, 3, 5] if mute and output.name == "training" else [0, 3, 5]
        world.hold(output, done, codes, states, mute=mute)
    assert failed == {call}
    world.settle(output)


@pytest.mark.faults
@clause(OTHERWISE)
@pytest.mark.parametrize(("call", "error", "output"), cases(LACKS, over=False))
def test_a_call_that_is_not_there_is_done_otherwise(
    call: str, error: str, output: Output, world: World, tmp_path: Path
) -> None:
    traced()
    when = "1..2" if error == "EINTR" else "1+"
    done = world.run(output, "new", *fault(tmp_path / "log", call, f"error={error}", when))
    world.hold(output, done, [0], ["new"])
    assert calls_in(tmp_path / "log", world.place, injected=True) == {call}
