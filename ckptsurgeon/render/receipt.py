"""A receipt as a person wants to see it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ..plan import Receipt
from ..text import escape, human_bytes
from .notes import Hanging, next_view

__all__ = ["counts_line", "receipt_view"]

RATE_BYTES, RATE_S = 10_000_000, 1.0
"""Less than this, or sooner, says nothing of the speed of a disk."""


def receipt_view(receipt: Receipt, *, next_steps: Sequence[str] = ()) -> RenderableType:
    """Return what was written and the next command."""
    line = Text(escape(receipt.output), style="bold")
    line.append(f"  {human_bytes(receipt.nbytes_written)}  {receipt.elapsed_s:.1f} s{_rate(receipt)}", "not bold")
    notes = [Hanging(Text("  note  ", "yellow"), escape(note, 1000)) for note in receipt.notes]
    return Group(Hanging(Text("  wrote "), line), *notes, *next_view(next_steps))


def _rate(receipt: Receipt) -> str:
    if receipt.nbytes_written < RATE_BYTES or receipt.elapsed_s < RATE_S:
        return ""
    return f"  {human_bytes(int(receipt.nbytes_written / receipt.elapsed_s))}/s"


def counts_line(receipt: Receipt) -> Text:
    """Return the classes of a receipt in one line."""
    classes = ", ".join(f"{number} {kind}" for kind, number in receipt.counts.items() if number)
    return Text(f"  {classes}")
