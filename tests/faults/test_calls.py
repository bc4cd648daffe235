"""Calls to the kernel that fail, one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from ..promises.clauses import FAILING, OTHERWISE, clause
from .outputs import CHECKPOINTS, OUTPUTS, Output, World
from .tracing import fault, traced

FAILS = {
    "copy_file_range": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT"),
    "write": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "EACCES"),
    "link": ("EIO", "EACCES"),
    "mkdir": ("EACCES", "ENOSPC"),
    "renameat2": ("EIO",),
    "fallocate": ("ENOSPC", "EIO"),
}
LACKS = {
    "copy_file_range": ("EINTR", "EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL"),
    "fsync": ("EOPNOTSUPP", "EINVAL", "EINTR"),
    "fallocate": ("EOPNOTSUPP", "EINTR", "ENOSYS"),
    "sync_file_range": ("ESPIPE", "ENOSYS"),
    "fadvise64": ("EINVAL", "ESPIPE"),
}


def cases(of: dict[str, tuple[str, ...]]) -> list[Any]:
    """Every error for checkpoints, the first of each call for the rest, which take longer."""
    return [
        pytest.param(call, error, output, id=f"{call} {error} {output.name}")
        for output in OUTPUTS
        for call, errors in of.items()
        for error in (errors if output in CHECKPOINTS else errors[:1])
    ]


@pytest.mark.faults
@clause(FAILING)
@pytest.mark.parametrize(("call", "error", "output"), cases(FAILS))
def test_a_call_that_fails_keeps_what_was_there(call: str, error: str, output: Output, world: World) -> None:
    traced()
    if output.before:
        world.written(output, output.before)
    for when in ("1", "2", "3+"):
        done = world.run(output, "new", *fault(call, f"error={error}", when))
        # Other calls of that name than ours, such as Python's for compiled files, may fail without harm.
        states = ["old", "new"] if output.before else ["", "old", "new"]
        world.hold(output, done, [0, 3, 5], states, mute=call == "write")  # that is how errors are said, too
    world.settle(output)


@pytest.mark.faults
@clause(OTHERWISE)
@pytest.mark.parametrize(("call", "error", "output"), cases(LACKS))
def test_a_call_that_is_not_there_is_done_otherwise(call: str, error: str, output: Output, world: World) -> None:
    traced()
    when = "1..2" if error == "EINTR" else "1+"
    done = world.run(output, "new", *fault(call, f"error={error}", when))
    world.hold(output, done, [0], ["new"])
