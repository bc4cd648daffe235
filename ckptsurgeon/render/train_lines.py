"""How a training run is under way, a line for each thing that happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from ..util.text import count, escape, percent
from .notes import Spread
from .train import HEADS, TITLES, figures_said

__all__ = [
    "checking_line",
    "control_line",
    "dev_line",
    "filled_line",
    "filling_line",
    "step_line",
    "testing_line",
]


class _Fitting:
    """Words on one line; where it is too narrow for all, those at ``spared`` are left out, the first of them first."""

    def __init__(self, words: Sequence[str], spared: Sequence[int]) -> None:
        self._words, self._spared = words, spared

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: set[int] = set()
        for place in (*self._spared, None):
            line = Text("  " + "  ".join(word for i, word in enumerate(self._words) if i not in left_out))
            if line.cell_len <= options.max_width or place is None:
                break
            left_out.add(place)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def step_line(row: Mapping[str, Any], steps: int, left_s: float | None) -> RenderableType:
    """Return a step of the log in one line, with the time that is left in seconds, whatever else finds no room."""
    loss, norm = (row[name] for name in ("loss", "grad_norm"))
    rate = max(row["lr"].values(), default=0.0)
    words = [
        f"step {str(row['step']).rjust(len(str(steps)))}/{steps}",
        f"loss {loss:.3g}" if loss is not None else "loss is not finite",
        f"grad {norm:.2g}" if norm is not None else "grad is not finite",
        f"lr {rate:.1e}",
        f"{row['clips_s']:,.0f} clips/s".replace(",", " "),
        f"padding {percent(row['padding'], 1)}",
    ]
    return _Fitting([*words, *_left(left_s)], spared=(5, 3, 4, 2))


def _left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"{int(seconds) // 60}:{int(seconds) % 60:02} left"]


def filling_line(row: Mapping[str, Any], left_s: float | None) -> RenderableType:
    """Return how many clips of a split have their features, with the time that is left in seconds."""
    clips = f"{row['clips']:,}/{row['of']:,} clips".replace(",", " ")
    return _Fitting([f"features  {escape(row['split'])}", clips, *_left(left_s)], spared=())


def filled_line(row: Mapping[str, Any]) -> Text:
    """Return of how many clips the features were computed, and where they are kept."""
    return Text(f"  features of {count(row['clips'], 'clip')} computed, kept in {escape(row['cache'])}")


def dev_line(row: Mapping[str, Any], steps: int) -> RenderableType:
    """Return an evaluation in one line, if the terminal is wide enough for one."""
    step = str(row["step"]).rjust(len(str(steps)))
    return Spread(Text(f"  step {step}/{steps}  dev  "), figures_said(row["dev"]))


def checking_line(row: Mapping[str, Any]) -> Text:
    """Return that checks are being made, and how many are."""
    line = f"  checks {TITLES[row['when']]}  {row['done']} done"
    return Text(line, no_wrap=True, overflow="ellipsis")


def testing_line(row: Mapping[str, Any]) -> Text:
    """Return that the best weights are being evaluated."""
    return Text(f"  test  the best weights, of step {row['step']}", no_wrap=True, overflow="ellipsis")


def control_line(row: Mapping[str, Any]) -> Text:
    """Return one run of the controls in one line: which it is, and what it reached if it is done."""
    number = str(row["number"]).rjust(len(str(row["of"])))
    body = HEADS[row["frozen"]].ljust(max(map(len, HEADS.values())))
    value = "training" if row["value"] is None else f"{escape(row['metric'])} {row['value']:.3f}"
    words = (f"control {number}/{row['of']}", body, row["way"].ljust(8), f"seed {row['seed']}", value)
    return Text("  " + "  ".join(words), no_wrap=True, overflow="ellipsis")
