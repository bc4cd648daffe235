"""A run, read again from its folder."""

from __future__ import annotations

import math
import os

from ...api.inputs.argument_types import Path
from ...errors import ConfigError, FormatError
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from ..checks._check import Check
from ..folder.run_folder import RunFolder
from .result import Arm, Controls, Trained

__all__ = ["read_report"]


def _undone(folder: RunFolder) -> ConfigError:
    begun = folder.holds_a_run
    hint = f"It is not done: ckpt train --run {escape(folder.path)} --resume goes on with it." if begun else ""
    return ConfigError(f"{escape(folder.path)} holds no report of a run.", hint=hint)


def _number(value: float | None) -> float:
    """Return a figure; JSON has no NaN, and None stands for it."""
    return math.nan if value is None else float(value)


def read_report(run: Path) -> Trained:
    """Return what came of the run in a folder; raises ConfigError where there is none, FormatError where it is odd."""
    folder = RunFolder(os.fspath(run))
    if not os.path.isdir(folder.path):
        hint = did_you_mean(folder.path, "Name its folder: ckpt train --report DIR.")
        raise ConfigError(f"there is no run {escape(folder.path)}.", hint=hint)
    if not os.path.exists(folder.of("result.json")):
        raise _undone(folder)
    data = folder.read_json("result.json")
    step = data.get("step")
    if folder.saved_steps and isinstance(step, int) and folder.last_step() > step:
        raise _undone(folder)  # what there is was written before the run went on, and was killed
    try:
        known = {name: data[name] for name in Trained.__dataclass_fields__ if name in data}
        made = known.get("controls")
        if made is not None:
            arms = tuple(Arm(arm["name"], arm["frozen"], tuple(map(_number, arm["values"]))) for arm in made["arms"])
            known["controls"] = Controls(**{**made, "arms": arms, "plateau": tuple(made.get("plateau", ()))})
        known["figures"] = {name: _number(value) for name, value in known["figures"].items()}
        checks = tuple(Check(**check) for check in known["checks"])
        return Trained(**{**known, "checks": checks, "notes": tuple(known["notes"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{escape(folder.of('result.json'))} is not what a run writes: {error}.") from error
