"""``ckpt lora extract``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import DryRun, Force, Key, Memory, OutputUnlessDry, Root, Unwrap, Wait
from ..sink import Sink
from ..writing import Writing

NAME = "lora extract"
HELP = """Extract a low-rank adapter: what a network was tuned to, over its base.

Of each matrix or convolution that differs, the best factors of a rank: a randomised singular value decomposition, read
in blocks, so that memory stays small. The output is a folder that PEFT opens. How much of each difference is lost is
printed, and what differs and is neither is named.
"""
EXAMPLES = """\b
Examples:
  ckpt lora extract tuned.safetensors base.safetensors --rank 16 -o adapter/
  ckpt lora extract tuned/ base/ --rank 64 --include '**.{q,v}_proj' -o adapter/

\b
Exit status: 2 a rank that is none, a pattern that matches nothing; 3 an input that is missing or damaged; 4 nothing
that differs is a matrix or a convolution; 5 the output cannot be written.
"""


def run(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="What was tuned.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="What it was tuned from.")],
    rank: Annotated[int, typer.Option("--rank", metavar="R", help="Of the factors; 16 if not given.")] = 16,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="ALPHA", help="PEFT's lora_alpha; the rank if not given.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PATTERN", help="Take only these keys; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Leave these keys out; repeatable.")
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Take embeddings too.")] = False,
    fan_in_fan_out: Annotated[
        bool, typer.Option("--fan-in-fan-out", help="Weights are (in, out), as GPT-2's, where no config.json says so.")
    ] = False,
    save_modules: Annotated[
        bool, typer.Option("--save-modules", help="Let what differs otherwise go along whole.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Of the factors.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the random start.")] = 0,
    vocab: Annotated[
        str | None,
        typer.Option("--vocab", metavar="place", help="Subtract rows by place, though the tokenisers differ."),
    ] = None,
    memory: Memory = None,
    output: OutputUnlessDry = None,
    root: Root = None,
    unwrap: Unwrap = False,
    force: Force = False,
    wait: Wait = None,
    key: Key = None,
    dry_run: DryRun = False,
    *,
    sink: Sink,
) -> None:
    """Extract an adapter."""
    from ...api.lora.extract import lora_extract

    writing = Writing(output=output, force=force, dry_run=dry_run, wait=wait, key=key, sink=sink)
    writing.check()
    plan = lora_extract(
        tuned, base, rank=rank, alpha=alpha, include=include or (), exclude=exclude or (), embeddings=embeddings,
        fan_in_fan_out=fan_in_fan_out, save_modules=save_modules, dtype=dtype, seed=seed, vocab=vocab,
        memory=memory, unwrap=unwrap, root=root,
    )  # fmt: skip
    writing.carry_out(plan)
