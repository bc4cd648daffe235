"""Reads the records of a run in its folder: its checks, and its result for a report."""

from __future__ import annotations

import math
import os

from ...api.inputs.argument_types import Path
from ...errors import ConfigError, FormatError
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from ..checks.check import Check
from ..folder.run_folder import RunFolder
from .records import CHECKS
from .result import Arm, Controls, Trained

__all__ = ["read_report", "read_start_checks"]


def read_start_checks(folder: RunFolder) -> tuple[Check, ...]:
    """Return the checks that were recorded before a run's first step; raises SourceError or FormatError."""
    if not os.path.exists(folder.of(CHECKS)):
        return ()
    made = folder.read_json(CHECKS)
    try:
        return tuple(check for check in (Check(**row) for row in made["checks"]) if check.when == "before")
    except (KeyError, TypeError) as error:
        raise FormatError(f"{escape(folder.of(CHECKS))} is not a valid list of checks: {error}.") from error


def _unfinished(folder: RunFolder) -> ConfigError:
    begun = folder.holds_a_run
    hint = f"The run is not done: ckpt train --run {escape(folder.path)} --resume goes on with it." if begun else ""
    return ConfigError(f"{escape(folder.path)} contains no report of a finished run.", hint=hint)


def _number(value: float | None) -> float:
    """Return a metric that was read from JSON; None becomes NaN, because JSON has no NaN."""
    return math.nan if value is None else float(value)


def read_report(run: Path) -> Trained:
    """Return the result of the run in a folder; raises ConfigError if there is none, FormatError if it is invalid."""
    folder = RunFolder(os.fspath(run))
    if not os.path.isdir(folder.path):
        hint = did_you_mean(folder.path, "Give the folder of a run: ckpt train --report DIR.")
        raise ConfigError(f"there is no run in {escape(folder.path)}.", hint=hint)
    if not os.path.exists(folder.of("result.json")):
        raise _unfinished(folder)
    data = folder.read_json("result.json")
    step = data.get("step")
    if folder.saved_steps and isinstance(step, int) and folder.last_step() > step:
        raise _unfinished(folder)  # the run was resumed after result.json was written, and killed
    try:
        known = {name: data[name] for name in Trained.__dataclass_fields__ if name in data}
        made = known.get("controls")
        if made is not None:
            arms = tuple(Arm(arm["name"], arm["frozen"], tuple(map(_number, arm["values"]))) for arm in made["arms"])
            known["controls"] = Controls(**{**made, "arms": arms, "plateau": tuple(made.get("plateau", ()))})
        for field in ("figures", "test"):
            known[field] = {name: _number(value) for name, value in known.get(field, {}).items()}
        checks = tuple(Check(**check) for check in known["checks"])
        return Trained(**{**known, "checks": checks, "notes": tuple(known["notes"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{escape(folder.of('result.json'))} is not a valid result of a run: {error}.") from error
