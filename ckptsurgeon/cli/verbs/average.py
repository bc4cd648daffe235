"""``ckpt average``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import DryRun, Force, Json, Key, MaxShard, OutputUnlessDry, Quiet, Root, To, Unwrap, Verbose, Wait
from ..sink import Sink
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
    output: OutputUnlessDry = None,
    root: Root = None,
    unwrap: Unwrap = False,
    to: To = None,
    max_shard_size: MaxShard = None,
    force: Force = False,
    wait: Wait = None,
    key: Key = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Average checkpoints."""
    from ...api.average import average

    writing = Writing(Sink(json, quiet, verbose), output, to, max_shard_size, force, dry_run, wait, key)
    writing.check()
    plan = average(sources, ema=ema, int_buffers=int_buffers, vocab=vocab, unwrap=unwrap, root=root)
    writing.carry_out(plan)
