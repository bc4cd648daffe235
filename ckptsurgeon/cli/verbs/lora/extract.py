"""The command ``ckpt lora extract``: extracts a low-rank adapter from a tuned network."""

from __future__ import annotations

from typing import Annotated

import typer

from ...options import Memory, OutputUnlessDry, Root, Unwrap
from ...writing import AdapterWriting

NAME = "lora extract"
HELP = """Extract a low-rank adapter from a tuned network and its base.

For each matrix or convolution that differs, finds the best factors of the given rank by a randomised singular value
decomposition, block by block, so that memory stays small. The output is a folder that PEFT opens. A table shows how
much of each difference is lost; a note lists tensors that differ but are neither a matrix nor a convolution.
"""
EXAMPLES = """\b
Examples:
  ckpt lora extract tuned.safetensors base.safetensors --rank 16 -o adapter/
  ckpt lora extract tuned/ base/ --rank 64 --include '**.{q,v}_proj' -o adapter/

\b
Exit status: 2 an invalid rank, a pattern that matches nothing; 3 an input is missing or damaged; 4 no matrix or
convolution differs; 5 the output cannot be written.
"""


def run(
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The tuned network.")],
    base: Annotated[str, typer.Argument(metavar="BASE", help="The network from which TUNED was tuned.")],
    rank: Annotated[int, typer.Option("--rank", metavar="R", help="Use this rank for the factors.")] = 16,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="ALPHA", help="Write this lora_alpha for PEFT. [default: the rank]"),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PATTERN", help="Take only these keys. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Leave these keys out. Repeatable.")
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Factor embeddings as well.")] = False,
    fan_in_fan_out: Annotated[
        bool,
        typer.Option(
            "--fan-in-fan-out",
            help="Treat weights as (in, out), as in GPT-2, if no config.json shows the architecture.",
        ),
    ] = False,
    save_modules: Annotated[
        bool,
        typer.Option(
            "--save-modules", help="Store other tensors that differ as a whole, as PEFT's modules_to_save does."
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Write the factors in this dtype.")
    ] = "float32",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Seed the randomised decomposition with this number.")
    ] = 0,
    vocab: Annotated[
        str | None,
        typer.Option("--vocab", metavar="place", help="Subtract row n from row n even if the tokenisers differ."),
    ] = None,
    memory: Memory = None,
    output: OutputUnlessDry = None,  # belongs to the group; declared here for its place in the help
    root: Root = None,
    unwrap: Unwrap = False,
    *,
    writing: AdapterWriting,
) -> None:
    """Extract a low-rank adapter from a tuned network and its base, and write it."""
    from ....api.lora.extract import lora_extract

    writing.check()
    plan = lora_extract(
        tuned, base, rank=rank, alpha=alpha, include=include or (), exclude=exclude or (), embeddings=embeddings,
        fan_in_fan_out=fan_in_fan_out, save_modules=save_modules, dtype=dtype, seed=seed, vocab=vocab,
        memory=memory, unwrap=unwrap, root=root,
    )  # fmt: skip
    writing.carry_out(plan)
