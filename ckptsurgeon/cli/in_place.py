"""Renames keys in the file itself (``rename --in-place``): checks the options, then shows or carries out the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..util.torchrun import rank_of_process
from .first_process import by_the_first
from .printing import quoted, show_plan
from .stopping import say
from .writing import Writing

if TYPE_CHECKING:
    from ..planning.plan.plan import Plan

__all__ = ["carry_out_in_place", "prepare_in_place"]

OPTIONS = {
    "output": "-o", "to": "--to", "max_shard_size": "--max-shard-size", "force": "--force", "key": "--key",
    "restart": "--restart", "consume": "--consume", "yes": "--yes", "engine": "--engine", "prove": "--prove",
    "processes": "--processes",
}  # fmt: skip
"""The options that are only for outputs in a new file."""


def prepare_in_place(source: str, writing: Writing) -> None:
    """Complete or undo interrupted renamings of the source; raises ConfigError if an option for a new file is given."""
    from ..api.in_place.settle import settle
    from ..errors import ConfigError

    given = [option for name, option in OPTIONS.items() if getattr(writing, name)]
    given += [f"--{name}" for name in writing.shared.given]
    if given:
        raise ConfigError(
            f"--in-place and {given[0]} contradict each other: --in-place changes SRC itself and writes no new file.",
            hint="Leave one out.",
        )
    for note in settle(source):
        say(f"note: {note}")


def carry_out_in_place(plan: Plan, writing: Writing) -> None:
    """Write the new names into the headers of the source and show the receipt; with --dry-run, only show the plan."""
    from ..api.in_place.apply import apply_in_place, check_in_place
    from ..api.in_place.prepare import for_place
    from ..api.inputs.inputs import close_plan
    from ..render.verification import receipt_view

    printer, plan = writing.printer, for_place(plan)
    if writing.dry_run:
        plan = replace(plan, notes=(*plan.notes, *check_in_place(plan)))
        if not printer.answer(plan):
            show_plan(printer, plan, plan.notes)
        return
    if rank_of_process():
        close_plan(plan)  # the first process can write only if no other process reads
    with printer.working("writing"):
        receipt = by_the_first(lambda: apply_in_place(plan, wait=writing.wait))
    if printer.answer(receipt):
        return
    show_plan(printer, plan, receipt.notes)
    next_steps = [f"ckpt check {quoted(receipt.output)}"]  # ckpt verify has nothing to compare the values with
    printer.show(receipt_view(receipt, next_steps=next_steps, every=printer.verbose))
