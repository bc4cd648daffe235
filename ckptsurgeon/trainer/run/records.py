"""What a run writes beside its checkpoints: at its beginning, and when it is done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...util.text import escape
from ..checks._check import Check
from ..folder.curves import curves_png
from ..folder.run_folder import BEST, RunFolder
from ..job.job import Job
from ..loop.log import LOG_FILE as LOG
from ..loop.log import read_log
from .lineage import KEPT, OVERFITTING, config_text, lineage_of
from .lineage import LINEAGE as LINEAGE
from .result import Trained

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = ["read_start_checks", "write_end_records", "write_start_records"]

CHECKS = "checks.json"


def write_start_records(
    folder: RunFolder, job: Job, plan: Plan | None, *, sets: Sequence[str], checks: Sequence[Check], overfitting: bool
) -> None:
    """Make the folder, and write what was started and how it was found; raises OutputError.

    The lineage comes first: it tells that all else is of a run, which may be begun again if it never saved.
    """
    folder.create()
    for name in (BEST, "result.json"):  # of a run that was killed before it saved
        folder.remove(name)
    home = os.path.abspath(job.document.folder)
    used = config_text(job, os.path.relpath(home, os.path.abspath(folder.path))).encode("utf-8", "surrogatepass")
    folder.write_json(
        LINEAGE,
        {
            **lineage_of(job, plan, folder, sets),
            KEPT: hashlib.sha256(used).hexdigest(),
            OVERFITTING: overfitting,
        },
    )
    folder.write("config.yaml", used)
    _write_checks(folder, checks)


def read_start_checks(folder: RunFolder) -> tuple[Check, ...]:
    """Return what was checked before a run's first step."""
    made = folder.read_json(CHECKS)["checks"] if os.path.exists(folder.of(CHECKS)) else []
    return tuple(check for check in (Check(**row) for row in made) if check.when == "before")


def write_end_records(folder: RunFolder, result: Trained, *, curves: bool) -> None:
    """Write what came of a run; raises OutputError."""
    _write_checks(folder, result.checks)
    folder.write_json("result.json", result.to_json())
    rows = read_log(folder.of(LOG)) if curves else []
    drawn = curves_png(rows, result.metric, title=_title(folder, result), best_step=result.best_step)
    if drawn is not None:
        folder.write("curves.png", drawn)


def _title(folder: RunFolder, result: Trained) -> str:
    """Return what a picture is of: the run, the task, and what it started from."""
    name = os.path.basename(os.path.abspath(folder.path))
    begun = f"from {os.path.basename(result.init)}" if result.init else "from scratch"
    return escape(f"{name}: {result.task}, {begun}", 100)


def _write_checks(folder: RunFolder, checks: Sequence[Check]) -> None:
    folder.write_json(CHECKS, {"checks": [check.to_json() for check in checks]})
