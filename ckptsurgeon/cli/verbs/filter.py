"""The command ``ckpt filter``: keeps some of a checkpoint's tensors."""

from __future__ import annotations

from typing import Annotated

import typer

from ..writing import StateDictAndExtras, Writing

NAME = "filter"
HELP = """Keep some of a checkpoint's tensors.

Entries outside the state dict (optimizer, schedulers, epoch) are left out, and a note lists them; --root selects
another state dict, such as the EMA. Patterns match the keys as they are in the file, with wrappers, unless --unwrap
is given.
"""
EXAMPLES = """\b
Examples:
  ckpt filter training.ckpt -o weights.safetensors
  ckpt filter training.ckpt --root model_ema --exclude decoder --keep-extras -o encoder.pth
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint to take tensors from.")],
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Take only these keys. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="GLOB", help="Leave these keys out, even if --include matches them. Repeatable."
        ),
    ] = None,
    *,
    state_dict: StateDictAndExtras,
    writing: Writing,
) -> None:
    """Write a checkpoint with only some of the tensors of another."""
    from ...api.edit import filter as api_filter

    writing.check()
    writing.carry_out(api_filter(source, include=include, exclude=exclude, **state_dict.arguments))
