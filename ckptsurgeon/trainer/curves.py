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


def curves_png(rows: Sequence[Mapping[str, Any]], metric: str) -> bytes | None:
    """Return the curves of a log as PNG; None where matplotlib is not installed or there is nothing to draw."""
    steps = [row for row in rows if "loss" in row and row["loss"] is not None]
    if not steps or importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex=True).flat
    x = [row["step"] for row in steps]
    _line(next(panels), "loss", x, [row["loss"] for row in steps], smooth=True)
    dev = [row for row in rows if metric in row.get("dev", {})]
    panel = next(panels)
    _line(panel, f"dev {metric}", [row["step"] for row in dev], [row["dev"][metric] for row in dev], marks=True)
    if not dev:
        panel.text(0.5, 0.5, "not evaluated", ha="center", va="center", color=MUTED, transform=panel.transAxes)
    _line(next(panels), "gradient norm", x, [row["grad_norm"] for row in steps], smooth=True)
    panel = next(panels)
    for name in steps[-1]["lr"]:
        _line(panel, "learning rate", x, [row["lr"].get(name) for row in steps])
    for panel in figure.axes[2:]:
        panel.set_xlabel("step", color=MUTED)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _line(
    panel: Any, title: str, x: Sequence[int], y: Sequence[float | None], *, smooth: bool = False, marks: bool = False
) -> None:
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color("#cbd2d9")
    panel.tick_params(colors=MUTED, labelsize=9)
    panel.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    values = [float("nan") if value is None else value for value in y]
    if smooth and len(values) > 20:
        panel.plot(x, values, color=LINE, alpha=0.25, linewidth=0.8)
        panel.plot(x, _smoothed(values), color=LINE, linewidth=1.6)
    else:
        panel.plot(
            x, values, color=SECOND if marks else LINE, linewidth=1.6, marker="o" if marks else None, markersize=3
        )


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return centred means, over fewer values at the ends: a mean of what came before lags behind a steep beginning."""
    made = []
    for i in range(len(values)):
        side = min(AROUND, i, len(values) - 1 - i)
        near = [value for value in values[i - side : i + side + 1] if math.isfinite(value)]
        made.append(sum(near) / len(near) if near else math.nan)
    return made
