"""``ckpt average``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Root, Unwrap
from ..writing import Writing

NAME = "average"
HELP = """Average checkpoints of one model.

Floats are averaged in double precision, streamed: memory does not grow with the number of files. Integers and truth
values, such as BatchNorm's counter, have no mean: they are the last checkpoint's, and never summed. A key that one of
them lacks is an error that names the file.
"""
EXAMPLES = """\b
Examples:
  ckpt average 38epoch.pth 39epoch.pth 40epoch.pth -o averaged.pth
  ckpt average step*.safetensors --ema 0.999 -o ema.safetensors
"""


def run(
    sources: Annotated[list[str], typer.Argument(metavar="CKPT CKPT…", help="Two or more, the oldest first.")],
    ema: Annotated[
        float | None,
        typer.Option("--ema", metavar="DECAY", help="A moving average instead of the mean, as in 0.999."),
    ] = None,
    int_buffers: Annotated[
        str, typer.Option("--int-buffers", metavar="last|first|max", help="What becomes of integers.")
    ] = "last",
    vocab: Annotated[
        str | None,
        typer.Option("--vocab", metavar="place", help="Average rows by place, though the tokenisers differ."),
    ] = None,
    root: Root = None,
    unwrap: Unwrap = False,
    *,
    writing: Writing,
) -> None:
    """Average checkpoints."""
    from ...api.average import average

    writing.check()
    plan = average(sources, ema=ema, int_buffers=int_buffers, vocab=vocab, unwrap=unwrap, root=root)
    writing.carry_out(plan)
