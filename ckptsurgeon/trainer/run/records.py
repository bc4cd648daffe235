"""Writes the records of a run and curves.png into its folder, and reads the records again for a report."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...api.inputs.argument_types import Path
from ...errors import ConfigError, FormatError
from ...storage.small_files import read_file
from ...util.did_you_mean import did_you_mean
from ...util.text import escape
from ..checks.check import Check
from ..folder.run_folder import BEST, RunFolder
from ..job.job import Job
from ..log import LOG_FILE as LOG
from ..log import read_log
from .lineage import KEPT, LINEAGE, OVERFITTING, config_text, lineage_of
from .result import Arm, Controls, Trained
from .run_loggers import LOGGER_IDS

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = ["curves_png", "read_report", "read_start_checks", "write_end_records", "write_start_records"]

INK, MUTED, LINE, SECOND = "#1f2933", "#7b8794", "#2f6fb0", "#c2571a"
AROUND = 7
"""Each point of the smooth line is the mean over a step, this many steps before it, and this many steps after it."""


def curves_png(rows: Sequence[Mapping[str, Any]], metric: str, *, title: str = "", best_step: int = 0) -> bytes | None:
    """Return a PNG with the curves of a log; None if matplotlib is not installed or no step has a finite loss.

    ``rows`` are the rows of the log. ``metric`` is the name of the metric that is drawn for each evaluation. ``title``
    is written above the curves. The evaluation after ``best_step`` steps is marked, unless ``best_step`` is 0.
    """
    steps = [row for row in rows if "loss" in row and row["loss"] is not None]
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    panels = figure.subplots(2, 2, sharex=True).flat
    x = [row["step"] for row in steps]
    _line(next(panels), "loss", x, [row["loss"] for row in steps], smooth=True)
    _evaluations(next(panels), metric, [row for row in rows if metric in row.get("dev", {})], best_step)
    _line(next(panels), "gradient norm", x, [row["grad_norm"] for row in steps], smooth=True)
    panel = next(panels)
    for name in steps[-1]["lr"]:
        _line(panel, "learning rate", x, [row["lr"].get(name) for row in steps])
    for panel in figure.axes[2:]:
        panel.set_xlabel("step", color=MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _evaluations(panel: Any, metric: str, rows: Sequence[Mapping[str, Any]], best_step: int) -> None:
    """Draw the evaluations on ``dev`` as points into ``panel`` (matplotlib's Axes); the best has a ring and a label."""
    values = [row["dev"][metric] for row in rows]
    _line(panel, f"dev {metric}", [row["step"] for row in rows], values, marks=True)
    if not rows:
        panel.text(0.5, 0.5, "not evaluated", ha="center", va="center", color=MUTED, transform=panel.transAxes)
    best = next((row["dev"][metric] for row in rows if row["step"] == best_step), None)
    if best is not None and math.isfinite(best):
        ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        panel.plot([best_step], [best], label=f"best: {best:.3g} at step {best_step}", **ring)
        _legend(panel)


def _line(
    panel: Any, title: str, x: Sequence[int], y: Sequence[float | None], *, smooth: bool = False, marks: bool = False
) -> None:
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#cbd2d9")
    panel.tick_params(colors=MUTED, labelsize=9)
    panel.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    values = [float("nan") if value is None else value for value in y]
    if smooth and len(values) > 2 * AROUND + 6:
        panel.plot(x, values, color=LINE, alpha=0.25, linewidth=0.8, label="each step")
        panel.plot(x, _smoothed(values), color=LINE, linewidth=1.6, label=f"mean of {2 * AROUND + 1}")
        _legend(panel)
    else:
        size = 6 if marks and len(values) == 1 else 3
        marker = "o" if marks or len(values) == 1 else None
        panel.plot(x, values, color=SECOND if marks else LINE, linewidth=1.6, marker=marker, markersize=size)


def _legend(panel: Any) -> None:
    panel.legend(loc="best", fontsize=8, frameon=False, labelcolor=MUTED)


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return, for each value, the mean of the values around it; near the ends the mean has fewer values.

    Means over earlier values alone would lag behind a steep beginning of the curve.
    """
    made = []
    for i in range(len(values)):
        side = min(AROUND, i, len(values) - 1 - i)
        near = [value for value in values[i - side : i + side + 1] if math.isfinite(value)]
        made.append(sum(near) / len(near) if near else math.nan)
    return made


CHECKS = "checks.json"


def write_start_records(
    folder: RunFolder, job: Job, plan: Plan | None, *, sets: Sequence[str], checks: Sequence[Check], overfitting: bool
) -> None:
    """Create the folder; write the lineage, the configuration and the checks before the first step. Raises OutputError.

    The lineage is written first, because it marks the folder as the folder of a run. If the run is killed before its
    first checkpoint, a run can be started in the folder again.
    """
    folder.create()
    left = (
        BEST,
        os.path.relpath(folder.adapter, folder.path),
        "result.json",
        LOGGER_IDS,
    )  # files of a run that was killed before its first checkpoint
    for name in left:
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
    for one in job.target.companions:  # such as config.json of transformers, for the best weights
        folder.write(one.name, read_file(one.path) if one.path else one.text.encode())
    _write_checks(folder, checks)


def read_start_checks(folder: RunFolder) -> tuple[Check, ...]:
    """Return the checks that were recorded before a run's first step."""
    made = folder.read_json(CHECKS)["checks"] if os.path.exists(folder.of(CHECKS)) else []
    return tuple(check for check in (Check(**row) for row in made) if check.when == "before")


def write_end_records(folder: RunFolder, result: Trained, *, curves: bool) -> None:
    """Write the checks, the result and the curves of a run; raises OutputError."""
    _write_checks(folder, result.checks)
    folder.write_json("result.json", result.to_json())
    rows = read_log(folder.of(LOG)) if curves else []
    drawn = curves_png(rows, result.metric, title=_title(folder, result), best_step=result.best_step)
    if drawn is not None:
        folder.write("curves.png", drawn)


def _title(folder: RunFolder, result: Trained) -> str:
    """Return the title of the curves: the name of the run, its task, and its initial weights."""
    name = os.path.basename(os.path.abspath(folder.path))
    begun = f"from {os.path.basename(result.init)}" if result.init else "from scratch"
    return escape(f"{name}: {result.task}, {begun}", 100)


def _write_checks(folder: RunFolder, checks: Sequence[Check]) -> None:
    folder.write_json(CHECKS, {"checks": [asdict(check) for check in checks]})


def _unfinished(folder: RunFolder) -> ConfigError:
    begun = folder.holds_a_run
    hint = f"The run is not done: ckpt train --run {escape(folder.path)} --resume goes on with it." if begun else ""
    return ConfigError(f"{escape(folder.path)} contains no report of a run.", hint=hint)


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
        known["figures"] = {name: _number(value) for name, value in known["figures"].items()}
        checks = tuple(Check(**check) for check in known["checks"])
        return Trained(**{**known, "checks": checks, "notes": tuple(known["notes"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{escape(folder.of('result.json'))} is not a valid result of a run: {error}.") from error
