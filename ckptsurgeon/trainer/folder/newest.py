"""Which checkpoint of a run stands: where ``last`` leads, or, where that was lost on the way, the newest whole one."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import suppress

from ...errors import OutputError
from ...storage.write.temp import temp_name
from ...util.text import escape

__all__ = ["FILES", "clear_last", "complete_steps", "linked_step"]

FILES = ("model.safetensors", "state.pth")
"""What a whole checkpoint holds."""


def complete_steps(run: str) -> list[int]:
    """Return the steps of a run's whole checkpoints, the newest last."""
    try:
        names = os.listdir(os.path.join(run, "steps"))
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdigit() and _is_whole(os.path.join(run, "steps", name)))


def linked_step(run: str) -> int | None:
    """Return the step that ``last`` leads to; None where it is no link, which a copy may have lost, or dangles."""
    last = os.path.join(run, "last")
    if not os.path.islink(last):
        return None
    name = os.path.basename(os.path.realpath(last))
    return int(name) if name.isdigit() and _is_whole(last) else None


def clear_last(run: str, step: int) -> None:
    """Let ``last`` be free for a link to a step: a folder there, as ``cp -rL`` makes one, is a copy of what it led to.

    Raises OutputError where it is not: nothing is removed that is nowhere else.
    """
    last = os.path.join(run, "last")
    if os.path.islink(last) or not os.path.isdir(last):
        return
    copy_of = next(
        (one for one in reversed(complete_steps(run)) if _same(last, os.path.join(run, "steps", str(one)))), None
    )
    if copy_of is None:
        raise OutputError(
            f"{escape(last)} is a folder, and none of {escape(os.path.join(run, 'steps'))} is the same.",
            hint=f"Move it out of the run, and --resume goes on from step {step}.",
        )
    gone = temp_name(last)
    with suppress(OSError):
        os.rename(last, gone)
        shutil.rmtree(gone)


def _is_whole(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in FILES)


def _same(one: str, other: str) -> bool:
    there = _is_whole(one)
    return there and all(
        filecmp.cmp(os.path.join(one, name), os.path.join(other, name), shallow=False) for name in FILES
    )
