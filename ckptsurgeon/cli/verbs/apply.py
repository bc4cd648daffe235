"""``ckpt apply``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..checks import check_output, quoted
from ..options import Force, Json, MaxShard, Output, Quiet, To, Verbose
from ..sink import Sink

NAME = "apply"
HELP = """Carry out a plan that was made and reviewed before.

A plan is what ckpt transplant -n --json prints. It is refused when a source or the destination's configuration has
changed since. Paths in it are relative to the working directory.
"""
EXAMPLES = """\b
Examples:
  ckpt transplant src.pth dst.yaml --exclude decoder -n --json > plan.json
  ckpt apply plan.json -o out.safetensors
"""


def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN.json", help="The plan.")],
    output: Output,
    to: To = None,
    max_shard_size: MaxShard = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Carry out a plan."""
    from ... import api

    sink = Sink(json, quiet, verbose)
    check_output(output)
    with sink.working("writing", output) as progress:
        receipt = api.apply(plan, output, to=to, max_shard_size=max_shard_size, force=force, progress=progress)
    if sink.answer(receipt):
        return
    from ...render.receipt import counts_line, receipt_view

    sink.show(counts_line(receipt), receipt_view(receipt, next_steps=[f"ckpt verify {quoted(output)}"]))
