"""The command ``ckpt lora convert``: writes an adapter with the names of another toolkit."""

from __future__ import annotations

from typing import Annotated

import typer

from ...options import Memory
from ...writing import AdapterWriting
from ._options import Adapter, Energy, KeysOf, Rank

NAME = "lora convert"
HELP = """Write an adapter with the names and the layout of another toolkit: its change of each weight stays equal.

ckpt reads and writes folders of PEFT and mlx-lm, and files with kohya's, diffusers' or ComfyUI's names. If the toolkit
cannot store a scale, the scale is multiplied into the factors B, with a note. If it cannot store other parts (DoRA,
embeddings, tensors that are not factors), this is an error. Names of modules are kept: the adapter does not fit a
library that names the layers of the network differently.

A LoHa or LoKr (a PEFT folder, or a file with LyCORIS' names) becomes a LoRA with --rank or --energy: each module gets
the factors whose product is nearest to its change. A table shows how much of each change is lost. Only linear layers
are converted. An OFT multiplies the weights of its base: merge it, and use ckpt lora extract.
"""
EXAMPLES = """\b
Examples:
  ckpt lora convert adapter/ --to mlx -o mlx_adapter/
  ckpt lora convert style.safetensors --to peft --base unet/ --exclude 'lora_te_*' -o style/
  ckpt lora convert style/ --to diffusers --component unet -o style.safetensors
  ckpt lora convert loha/ --to peft --rank 16 -o lora/

\b
Exit status: 2 an adapter of another kind, an invalid rank or share, a pattern that matches nothing; 3 an adapter is
missing or damaged; 4 the toolkit cannot store the adapter; 5 the output cannot be written.
"""


def run(
    adapter: Adapter,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="NAME", help="Write the names of this toolkit: peft, kohya, diffusers, comfy or mlx."
        ),
    ],
    base: KeysOf = None,
    component: Annotated[
        str | None,
        typer.Option("--component", metavar="NAME", help="The adapter is for this model of a pipeline, such as unet."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="PATTERN", help="Leave these modules of the adapter out. Repeatable."),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Write the factors in this dtype. [default: the adapter's]"),
    ] = None,
    memory: Memory = None,
    *,
    writing: AdapterWriting,
) -> None:
    """Write an adapter with the names of another toolkit."""
    from ....api.lora.convert import lora_convert

    writing.check()
    plan = lora_convert(
        adapter, to=to, base=base, component=component, exclude=exclude or (), rank=rank, energy=energy, dtype=dtype,
        memory=memory,
    )  # fmt: skip
    writing.carry_out(plan)
