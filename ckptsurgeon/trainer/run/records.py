"""Writes the records of a run into its folder: lineage (its origin), configuration, checks, result, curves.png."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ...destinations._document import RELATIVE_TO, Document
from ...errors import FormatError
from ...storage.small_files import open_file, read_file
from ...storage.yaml_text import dump_yaml
from ...util.text import escape, listing
from ...util.version import __version__
from ...vocabulary.vocabulary import digest_of_tokens
from ..checks.check import Check
from ..data.loader import Batches
from ..data.sound import Clip
from ..folder.run_folder import BEST, RunFolder
from ..job.job import Job
from ..log import LOG_FILE as LOG
from ..log import read_log
from ..tasks._task import task_file
from .result import Trained, plain_json
from .run_loggers import LOGGER_IDS

if TYPE_CHECKING:
    from ...planning.plan.plan import Plan

__all__ = [
    "KEPT",
    "OVERFITTING",
    "TEXTS_DIGEST",
    "config_text",
    "curves_png",
    "data_digests",
    "lineage_of",
    "metadata_of",
    "model_sha256",
    "read_lineage",
    "write_end_records",
    "write_start_records",
]


TEXTS_DIGEST = "texts_digest"
"""The method of a source of texts that returns a digest of them."""


def data_digests(job: Job) -> dict[str, str]:
    """Return digests of the data of a run, by name, without data that the run does not use.

    The names are ``tokens`` (the token list), ``segmenter`` (the tokeniser), ``train``, ``dev`` and ``test`` (their
    clips in order, or their tokens), ``lm`` (the language model for decoding) and ``task`` (the file with the user's
    own task).
    """
    home = os.path.dirname(os.path.abspath(job.document.path))
    found = {"tokens": digest_of_tokens(job.tokens)} if job.tokens else {}
    for name, source in (("train", job.train), ("dev", job.dev), ("test", job.test)):
        if isinstance(source, Batches):
            found[name] = _digest(_clip_line(clip, home) for clip in source.split.clips)
        elif hasattr(source, TEXTS_DIGEST):
            found[name] = getattr(source, TEXTS_DIGEST)()
    segmenter = job.settings.data.segmenter
    if segmenter is not None:
        found["segmenter"] = hashlib.sha256(read_file(os.path.join(home, segmenter))).hexdigest()
    if job.settings.lm is not None:
        with open_file(os.path.join(home, job.settings.lm)) as file:
            found["lm"] = hashlib.file_digest(file, "sha256").hexdigest()
    task = task_file(job.settings.task, home)
    if task and os.path.isfile(task):
        found["task"] = hashlib.sha256(read_file(task)).hexdigest()
    return found


def _clip_line(clip: Clip, home: str) -> str:
    path = os.path.relpath(os.path.abspath(clip.path), home) if clip.path else clip.where
    return json.dumps([path, clip.text, clip.seconds, clip.begin_s, *(clip.cell or ())])


def _digest(lines: Iterable[str]) -> str:
    made = hashlib.sha256()
    for line in lines:
        made.update(line.encode() + b"\n")
    return made.hexdigest()


LINEAGE = "lineage.json"
NEEDED = ("config", "config_sha256", "model_sha256", "sets", "settings", "seed", "device", "init", "plan_sha256")
"""The fields of the lineage without which a run cannot be resumed."""
OVERFITTING = "overfit_one_batch"
KEPT = "kept_sha256"
"""The field of the lineage with the SHA-256 of config.yaml in the run folder."""


def lineage_of(job: Job, plan: Plan | None, folder: RunFolder, sets: Sequence[str]) -> dict[str, Any]:
    """Return the lineage of a run, that is, its starting point, as a dict for JSON.

    Paths are relative to the run folder.
    """
    return {
        "kind": "ckpt.lineage",
        "version": 1,
        "ckptsurgeon": __version__,
        "config": os.path.relpath(os.path.abspath(job.document.path), os.path.abspath(folder.path)),
        "config_sha256": hashlib.sha256(job.document.text.encode()).hexdigest(),
        "model_sha256": model_sha256(job.document),
        "sets": list(sets),
        "settings": plain_json(asdict(job.settings)),
        "seed": job.settings.seed,
        "device": job.device.type,
        "processes": job.ranks.size,
        "target": {"kind": job.target.kind, "tensors": len(job.target.tensors), "ran": list(job.target.ran)},
        "data": data_digests(job),
        "init": job.init.lineage(folder.path) if job.init is not None else None,
        "plan_sha256": plan.sha256() if plan is not None else None,
    }


def metadata_of(lineage: Mapping[str, Any]) -> dict[str, str]:
    """Return the part of the lineage that is written into the safetensors metadata of a saved model."""
    kept = ("ckptsurgeon", "config_sha256", "seed", "init", "plan_sha256")
    return {"lineage": json.dumps({name: lineage[name] for name in kept}, ensure_ascii=True)}


def config_text(job: Job, folder: str) -> str:
    """Return the text of config.yaml in the run folder: the configuration with every setting, including defaults.

    ``folder`` is the folder of the original configuration, relative to the run folder. The paths in the text are
    relative to ``folder``.
    """
    content = job.document.content
    if not isinstance(content, dict):
        return job.document.text
    rest = {name: value for name, value in content.items() if name != RELATIVE_TO}
    document = {RELATIVE_TO: folder, **rest, "train": _listed(asdict(replace(job.settings, epochs=None)))}
    return "# the configuration as it was used, defaults included\n" + dump_yaml(document)


def _listed(value: Any) -> Any:
    """Return settings (a dict) with lists in place of tuples, because YAML has no tuples."""
    if isinstance(value, Mapping):
        return {name: _listed(one) for name, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def read_lineage(folder: RunFolder) -> dict[str, Any]:
    """Return the lineage of a run, the record of its origin; raises SourceError or FormatError if it is not valid."""
    found = folder.read_json(LINEAGE)
    if found.get("kind") != "ckpt.lineage" or found.get("version") != 1:
        raise FormatError(
            f"{escape(folder.of(LINEAGE))} was not written by ckpt train, or was written by a newer version of it."
        )
    lacking = [name for name in NEEDED if name not in found]
    if lacking:
        raise FormatError(f"{escape(folder.of(LINEAGE))} is damaged: it has no {listing(lacking, where='')}.")
    return found


def model_sha256(document: Document) -> str:
    """Return the SHA-256 of the model in a configuration: of its section ``model:``, or of the whole file."""
    text = document.text if not document.model else json.dumps(plain_json(document.model), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
