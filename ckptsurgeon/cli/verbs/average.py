"""The command ``ckpt average``: averages checkpoints of one model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Encoding, StateDict
from ..writing import Writing

NAME = "average"
HELP = """Average checkpoints of one model.

Floats are averaged in double precision, block by block, so that memory does not grow with the number of files. Integers
and booleans, such as BatchNorm's counter, are not averaged, but taken from the last checkpoint (see --int-buffers). It
is an error if a checkpoint lacks a key.
"""
EXAMPLES = """\b
Examples:
  ckpt average 38epoch.pth 39epoch.pth 40epoch.pth -o averaged.pth
  ckpt average step*.safetensors --ema 0.999 -o ema.safetensors
  ckpt average step*.safetensors --decay 1-sqrt -o annealed.safetensors
  ckpt average epoch-10.pt epoch-20.pt --root model_avg --running batch_idx_train -o average.safetensors
"""


def run(
    sources: Annotated[
        list[str], typer.Argument(metavar="CKPT CKPT…", help="Two or more checkpoints, the oldest first.")
    ],
    ema: Annotated[
        float | None,
        typer.Option(
            "--ema",
            metavar="DECAY",
            help="Compute an exponential moving average with this decay, such as 0.999, instead of the mean.",
        ),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option(
            "--decay",
            metavar="linear|1-sqrt|cosine",
            help="Weight the checkpoints of a run with a constant learning rate as if it had fallen by this curve.",
        ),
    ] = None,
    running: Annotated[
        str | None,
        typer.Option(
            "--running",
            metavar="ENTRY",
            help="Average between two running averages of a run; ENTRY of the files counts the steps, as in icefall's "
            "batch_idx_train.",
        ),
    ] = None,
    int_buffers: Annotated[
        str,
        typer.Option(
            "--int-buffers",
            metavar="last|first|max",
            help="Take integer tensors from the last or first checkpoint, or the largest values of all.",
        ),
    ] = "last",
    vocab: Annotated[
        str | None,
        typer.Option("--vocab", metavar="place", help="Average row n with row n even if the tokenisers differ."),
    ] = None,
    encoding: Encoding = "keep",
    *,
    state_dict: StateDict,
    writing: Writing,
) -> None:
    """Average checkpoints of one model, and write the result."""
    from ...api.average import average

    writing.check()
    plan = average(
        sources, ema=ema, decay=decay, running=running, int_buffers=int_buffers, vocab=vocab, encoding=encoding,
        **state_dict.arguments,
    )  # fmt: skip
    writing.carry_out(plan)
