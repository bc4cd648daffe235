"""A receipt as a person wants to see it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..planning.plan.receipt import Fit, Receipt
from ..util.text import escape, human_bytes, percent, shape_text
from .columns import Columns
from .notes import Hanging, next_view

__all__ = ["counts_line", "receipt_view"]

WORST = 12
"""Of extracted factors, those that are shown unless all are asked for."""

RATE_BYTES, RATE_S = 10_000_000, 1.0
"""Less than this, or sooner, says nothing of the speed of a disk."""


def receipt_view(receipt: Receipt, *, next_steps: Sequence[str] = (), every: bool = False) -> RenderableType:
    """Return what was written and the next command; of extracted factors the worst, or every one."""
    line = Text(escape(receipt.output), style="bold")
    line.append(f"  {human_bytes(receipt.nbytes_written)}  {receipt.elapsed_s:.1f} s{_rate(receipt)}", "not bold")
    notes = [Hanging(Text("  note  ", "yellow"), escape(note, 1000)) for note in receipt.notes]
    return Group(*_fits(receipt.fits, every), Hanging(Text("  wrote "), line), *notes, *next_view(next_steps))


def _fits(fits: Sequence[Fit], every: bool) -> list[RenderableType]:
    """Return how much of each difference its factors lack, the worst first."""
    if not fits:
        return []
    worst = sorted(fits, key=lambda fit: -fit.error)
    shown = worst if every else worst[:WORST]
    rows: list[list[str | Text]] = [["", Text("rank", "dim"), Text("lost", "dim")]]
    rows += [[f"{escape(fit.key)} {shape_text(fit.shape)}", str(fit.rank), percent(fit.error, 1)] for fit in shown]
    more = len(worst) - len(shown)
    rest = [Text(f"  and {more} more that fit as well or better (-v shows all)", "dim")] if more else []
    return [Columns(rows, right=(1,)), *rest]


def _rate(receipt: Receipt) -> str:
    if receipt.nbytes_written < RATE_BYTES or receipt.elapsed_s < RATE_S:
        return ""
    return f"  {human_bytes(int(receipt.nbytes_written / receipt.elapsed_s))}/s"


def counts_line(receipt: Receipt) -> Text:
    """Return the classes of a receipt in one line."""
    classes = ", ".join(f"{number} {kind}" for kind, number in receipt.counts.items() if number)
    return Text(f"  {classes}")
