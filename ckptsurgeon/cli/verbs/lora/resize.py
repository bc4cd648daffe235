"""The command ``ckpt lora resize``: gives an adapter smaller ranks."""

from __future__ import annotations

from typing import Annotated

import typer

from ...options import Memory
from ...writing import AdapterWriting
from ._options import Adapter, Energy, Rank

NAME = "lora resize"
HELP = """Give an adapter smaller ranks: each module gets the factors whose product is nearest to the old product.

Each product B A is decomposed without computing it: by QR of both factors, and a singular value decomposition of the
small matrix between them. With --energy, each module gets the smallest rank that keeps this share of its squared
singular values. A table shows how much of each product is lost. The output has the names of the adapter's toolkit.
"""
EXAMPLES = """\b
Examples:
  ckpt lora resize adapter/ --rank 16 -o smaller/
  ckpt lora resize style.safetensors --energy 0.95 -o smaller.safetensors
  ckpt lora resize joined/ --energy 0.99 --rank 64 --dtype bf16 -o smaller/

\b
Exit status: 2 an invalid rank or share, an adapter of another kind; 3 an adapter is missing or damaged; 4 a DoRA, or
values that are not finite; 5 the output cannot be written.
"""


def run(
    adapter: Adapter,
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
    """Give an adapter smaller ranks, and write it."""
    from ....api.lora.resize import lora_resize

    writing.check()
    writing.carry_out(lora_resize(adapter, rank=rank, energy=energy, dtype=dtype, memory=memory))
