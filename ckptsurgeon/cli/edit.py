"""What the verbs that edit one checkpoint share: showing the plan, carrying it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .sink import Sink

if TYPE_CHECKING:
    from ..plan import Plan

__all__ = ["DryRun", "KeepExtras", "OutputUnlessDry", "Unwrap", "carry_out"]

OutputUnlessDry = Annotated[
    str | None, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to write; needed unless -n.")
]
DryRun = Annotated[
    bool,
    typer.Option("-n", "--dry-run", help="Show the plan and write nothing; with --json, print it for ckpt apply."),
]
Unwrap = Annotated[bool, typer.Option("--unwrap", help="Strip wrappers such as module. from the keys.")]
KeepExtras = Annotated[
    bool,
    typer.Option("--keep-extras", help="Carry entries that are no tensors (epoch, arguments) where they are plain."),
]


def carry_out(
    plan: Plan,
    sink: Sink,
    *,
    output: str | None,
    to: str | None,
    max_shard_size: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Show a plan, or write its output and show what was written."""
    from .. import api
    from ..errors import ConfigError

    if output is None and not dry_run:
        raise ConfigError("it does not say where to write.", hint="Name the output with -o, or look first with -n.")
    if dry_run:
        if not sink.answer(plan):
            _show(sink, plan)
        return
    with sink.progress("writing") as progress:
        receipt = api.apply(plan, output or "", to=to, max_shard_size=max_shard_size, force=force, progress=progress)
    if sink.answer(receipt):
        return
    from ..render.plan import receipt_view

    _show(sink, plan)
    sink.show(receipt_view(receipt, next_steps=[f"ckpt verify {output}"]))


def _show(sink: Sink, plan: Plan) -> None:
    from ..render.plan import plan_lines, plan_view

    if sink.quiet:
        return
    sink.notes(plan.notes)
    if sink.verbose:
        for line in plan_lines(plan):
            sink.line(line)
        sink.line("")
    sink.show(plan_view(plan))
