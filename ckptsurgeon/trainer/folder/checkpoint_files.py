"""Saves and removes the checkpoints in a run folder, finds the complete ones and the newest, and verifies checksums."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from ...errors import FormatError, OutputError, SourceError
from ...storage.descriptors import sync_folder
from ...storage.small_files import open_file, read_file
from ...storage.write.folders import StagedFolder, staged_folder
from ...storage.write.output_paths import output_error, remove_all_leftovers, temp_name
from ...util.text import escape, number_in

__all__ = [
    "MODEL",
    "MOMENTS",
    "STATE",
    "clear_last",
    "complete_steps",
    "damage_error",
    "finish",
    "linked_step",
    "point_last",
    "saving",
    "tidy",
    "verify_checksums",
]

FILES = MODEL, STATE = "model.safetensors", "state.pth"
"""The files of a complete checkpoint."""
MOMENTS = "moments"
"""The folder of optimizer moments, to which every rank of a sharded run writes."""
CHECKSUMS = "sums.json"


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


@contextmanager
def saving(run: str, step: int, *, keep: int, nbytes: int = 0) -> Iterator[StagedFolder]:
    """Yield a temporary folder, into which the block writes the checkpoint of a step; then move it to its place.

    After the block, the link ``last`` points to the new checkpoint, and all but the newest ``keep`` checkpoints are
    removed. ``nbytes`` is the space that the checkpoint needs. Even if the process is killed, ``last`` points to a
    complete checkpoint: the new checkpoint or the previous one. Raises OutputError.
    """
    stale = (MODEL, STATE, CHECKSUMS, MOMENTS)
    with staged_folder(os.path.join(run, "steps", str(step)), nbytes, stale=stale) as staged:
        yield staged
    point_last(run, step)
    _prune(run, step, keep)


def finish(staged: StagedFolder, state: Mapping[str, Any]) -> None:
    """Write the run's ``state`` and the checksums of all files into ``staged``, the folder that ``saving`` yields.

    Raises OutputError.
    """
    import torch

    with staged.stream(STATE) as file:
        try:
            torch.save(dict(state), cast(IO[bytes], file))  # torch.save only calls file.write and file.flush
        except RuntimeError as error:
            if isinstance(error.__context__, OutputError):  # a write failed, then torch failed to end the file
                raise error.__context__ from None
            raise
    moments = os.path.join(staged.path, MOMENTS)
    if os.path.isdir(moments):
        sync_folder(moments)
    staged.write(CHECKSUMS, _checksums(staged.path))


def point_last(run: str, step: int) -> None:
    """Point the link ``last`` to the checkpoint of a step, by an atomic rename; raises OutputError."""
    last = os.path.join(run, "last")
    temp = temp_name(last)
    try:
        os.symlink(os.path.join("steps", str(step)), temp)
        os.replace(temp, last)
        sync_folder(run)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temp)
        raise output_error(last, error) from error


def _prune(run: str, step: int, keep: int) -> None:
    """Remove old checkpoints and the leftovers of killed runs; keep the newest ``keep`` checkpoints up to ``step``.

    Checkpoints of later steps than ``step`` are also removed: they were written before the run was resumed at an
    earlier step. Each checkpoint is renamed, and the rename is synced, before its files are removed: so half a
    checkpoint never has the name of a checkpoint.
    """
    steps = os.path.join(run, "steps")
    found = sorted(one for name in os.listdir(steps) if (one := number_in(name)) is not None)
    kept = [one for one in found if one <= step][-keep:]
    gone = [temp for one in found if one not in kept for temp in _unnamed(os.path.join(steps, str(one)))]
    with suppress(OSError):
        if gone:
            sync_folder(steps)
        for temp in gone:
            shutil.rmtree(temp)
    tidy(run)


def _unnamed(checkpoint: str) -> list[str]:
    """Rename a checkpoint that is to be removed; return a list with its new path, or [] if renaming failed."""
    gone = temp_name(checkpoint)
    try:
        os.rename(checkpoint, gone)
    except OSError:
        return []
    return [gone]


def tidy(run: str) -> None:
    """Remove the leftovers of killed runs; the caller must hold the lock of the folder."""
    remove_all_leftovers(os.path.join(run, "steps"))
    remove_all_leftovers(run)
    with suppress(OSError):
        for name in os.listdir(run):
            link = os.path.join(run, name)
            if name.startswith(".last.") and ".ckpt-tmp" in name and os.path.islink(link):
                os.unlink(link)


def _checksums(folder: str) -> bytes:
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
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(f"{escape(path)} is damaged: it has no checksums.") from error
