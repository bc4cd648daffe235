"""The curves of a run as a picture: loss, the metric, gradient norm and learning rate."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["curves_png"]

INK, MUTED, LINE, SECOND = "#1f2933", "#7b8794", "#2f6fb0", "#c2571a"
AROUND = 7
"""The line that is drawn over the steps themselves is the mean of each and up to so many on either side of it."""


def curves_png(rows: Sequence[Mapping[str, Any]], metric: str, *, title: str = "", best_step: int = 0) -> bytes | None:
    """Return the curves of a log as PNG; None where matplotlib is not installed or there is nothing to draw.

    ``title`` stands above them; the evaluation after ``best_step`` steps is marked, 0 for none.
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
    """Draw what ``dev`` gave, each evaluation as a point, the best of them ringed and named."""
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
    """Return centred means, over fewer values at the ends: a mean of what came before lags behind a steep beginning."""
    made = []
    for i in range(len(values)):
        side = min(AROUND, i, len(values) - 1 - i)
        near = [value for value in values[i - side : i + side + 1] if math.isfinite(value)]
        made.append(sum(near) / len(near) if near else math.nan)
    return made
