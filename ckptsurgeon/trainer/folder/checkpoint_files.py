"""Finds the complete checkpoints in a run folder, and the newest one; writes and verifies their checksums."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...errors import FormatError, OutputError, SourceError
from ...storage.small_files import open_file, read_file
from ...storage.write.temp_files import temp_name
from ...util.text import escape, number_in

__all__ = [
    "CHECKSUMS",
    "FILES",
    "checksums_of_folder",
    "clear_last",
    "complete_steps",
    "linked_step",
    "verify_checksums",
]

FILES = ("model.safetensors", "state.pth")
"""The files of a complete checkpoint."""


def complete_steps(run: str) -> list[int]:
    """Return the steps of a run's complete checkpoints, the newest last."""
    try:
        names = os.listdir(os.path.join(run, "steps"))
    except OSError:
        return []
    steps = ((number_in(name), name) for name in names)
    return sorted(step for step, name in steps if step is not None and _is_whole(os.path.join(run, "steps", name)))


def linked_step(run: str) -> int | None:
    """Return the step that the link ``last`` points to; None if the link dangles, or ``last`` is not a link."""
    last = os.path.join(run, "last")
    if not os.path.islink(last):
        return None
    name = os.path.basename(os.path.realpath(last))
    return number_in(name) if _is_whole(last) else None


def clear_last(run: str, step: int) -> None:
    """Remove ``last`` from a run folder if it is a copy of a checkpoint in place of a link, as ``cp -rL`` makes it.

    If ``last`` is a folder that differs from all checkpoints, it is not removed, and OutputError is raised. The hint
    says that the run can be resumed from ``step``.
    """
    last = os.path.join(run, "last")
    if os.path.islink(last) or not os.path.isdir(last):
        return
    copy_of = next(
        (one for one in reversed(complete_steps(run)) if _same(last, os.path.join(run, "steps", str(one)))), None
    )
    if copy_of is None:
        raise OutputError(
            f"{escape(last)} should be a link to a checkpoint, but is a folder that differs from every checkpoint in "
            f"{escape(os.path.join(run, 'steps'))}.",
            hint=f"Move {escape(last)} out of the run folder; then --resume goes on from step {step}.",
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


CHECKSUMS = "sums.json"


def checksums_of_folder(folder: str) -> bytes:
    """Return the content of a checksum file (JSON) with the SHA-256 of each file under a folder."""
    made = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with open_file(os.path.join(path, name)) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            made[os.path.relpath(os.path.join(path, name), folder)] = digest
    return (json.dumps({"sha256": made}, indent=2) + "\n").encode()


def verify_checksums(folder: str, *, others: Sequence[str] = ()) -> None:
    """Raise FormatError if a file of the checkpoint in ``folder`` has changed since it was written.

    ``others`` are the folders of the run's other complete checkpoints, for the hint. Nothing is checked in a checkpoint
    of an earlier version of ckptsurgeon, which has no checksums. Raises SourceError if a file cannot be read.
    """
    wanted = _read(folder)
    for name, sha256 in wanted.items():
        path = os.path.join(folder, name)
        try:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
        if found != sha256:
            raise damage_error(path, folder, others)


def damage_error(
    path: str, folder: str, others: Sequence[str], why: str = "it has changed since it was written"
) -> FormatError:
    """Return the error for the damaged file ``path`` of the checkpoint in ``folder``.

    ``why`` is the end of the message. ``others`` are the folders of the run's other complete checkpoints; the hint says
    how to resume from the last of these.
    """
    if not others:
        return FormatError(f"{escape(path)} is damaged: {why}.", hint="No other checkpoint of the run is complete.")
    aside = f"{os.path.dirname(os.path.dirname(folder))}.damaged"
    return FormatError(
        f"{escape(path)} is damaged: {why}.",
        hint=f"{escape(others[-1])} is complete: run mv {escape(folder)} {escape(aside)}; then --resume goes on from "
        f"{escape(others[-1])}.",
    )


def _read(folder: str) -> Mapping[str, str]:
    path = os.path.join(folder, CHECKSUMS)
    if not os.path.exists(path):
        return {}
    try:
        found = json.loads(read_file(path))["sha256"]
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(f"{escape(path)} is damaged: it has no checksums.") from error
