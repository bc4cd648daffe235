"""A run's folder holds what a run wrote, or nothing of those names: a user's own files are never written over."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ...errors import CheckpointError, ConfigError, OutputError
from ...util.text import escape, listing
from ..data.split import resolve_paths
from ..folder.run_folder import BEST, RunFolder
from ..job.job import Job
from ..tasks._load import task_file
from .lineage import LINEAGE as LINEAGE
from .lineage import read_lineage

__all__ = ["check_free", "check_inputs_are_safe", "other_files_note"]

WRITTEN = (
    "config.yaml", LINEAGE, "log.jsonl", "checks.json", "result.json", "curves.png", BEST, "events", "steps", "last",
)  # fmt: skip
"""What a run writes in its folder."""


def check_free(folder: RunFolder) -> None:
    """Raise OutputError where files that no run left are in the way, and ConfigError where there is a run already."""
    if os.path.lexists(folder.path) and not os.path.isdir(folder.path):
        raise OutputError(f"{escape(folder.path)} is no folder.", hint="Name one for the run with --run.")
    found = [name for name in WRITTEN if os.path.lexists(folder.of(name)) and not _is_bare(folder.of(name))]
    if not found:
        return
    try:
        read_lineage(folder)
    except CheckpointError as error:
        raise OutputError(
            f"{escape(folder.of(found[0]))} is in the way: a run writes a file of that name, and no run left this one.",
            hint="Name a folder of its own with --run.",
        ) from error
    if folder.holds_a_run:
        raise ConfigError(
            f"{escape(folder.path)} holds a run, at step {folder.last_step()}.",
            hint="Go on with it by --resume, or start another with --run.",
        )


def _is_bare(path: str) -> bool:
    """Tell whether a path is a folder with nothing in it: what a run leaves that could write nothing."""
    try:
        return not os.listdir(path)
    except OSError:
        return False


def other_files_note(folder: RunFolder) -> tuple[str, ...]:
    """Return that a folder holds other things, between which a run is to lie: a slip, as of --run data, most often."""
    names = sorted(os.listdir(folder.path)) if os.path.isdir(folder.path) else []
    others = [name for name in names if name not in WRITTEN and not name.startswith((".", "__"))]
    if not others:
        return ()
    shown = listing(others, 3, where="")
    return (f"{escape(folder.path)} holds other things too, and the run lies between them: {shown}",)


def check_inputs_are_safe(folder: RunFolder, job: Job) -> None:
    """Raise OutputError where the run would write over what it is made of: a former run's folder may hold that."""
    outputs = [os.path.realpath(folder.of(name)) for name in WRITTEN]
    for path in filter(None, _inputs(job)):
        real = os.path.realpath(path)
        if any(real == output or real.startswith(output + os.sep) for output in outputs):
            raise OutputError(
                f"{escape(path)} is an input, and the run would write over it.",
                hint="Name a folder of its own with --run.",
            )


def _inputs(job: Job) -> Iterator[str]:
    """Yield the files that a run reads."""
    home = job.document.folder
    data = resolve_paths(job.settings.data, home)
    yield job.document.path
    yield task_file(job.settings.task, home)
    yield from (path for path in (*data.train, *data.dev, *data.test, data.tokens) if isinstance(path, str))
    if job.init is not None:
        yield job.init.path
