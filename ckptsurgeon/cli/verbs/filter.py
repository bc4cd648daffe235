"""``ckpt filter``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import (
    KeepExtras,
    Root,
    Unwrap,
)
from ..writing import Writing

NAME = "filter"
HELP = """Keep some of a checkpoint's tensors.

What is beside the state dict (optimizer, schedulers, epoch) is left out, and said; --root chooses another state dict,
such as the EMA. Keys are those that stand in the file, wrappers and all, unless --unwrap.
"""
EXAMPLES = """\b
Examples:
  ckpt filter training.ckpt -o weights.safetensors
  ckpt filter training.ckpt --root model_ema --exclude decoder --keep-extras -o encoder.pth
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint.")],
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Take only these keys; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Leave these keys out; repeatable, wins over --include."),
    ] = None,
    root: Root = None,
    unwrap: Unwrap = False,
    keep_extras: KeepExtras = False,
    *,
    writing: Writing,
) -> None:
    """Keep some tensors."""
    from ...api.edit import filter as api_filter

    writing.check()
    plan = api_filter(source, include=include, exclude=exclude, unwrap=unwrap, keep_extras=keep_extras, root=root)
    writing.carry_out(plan)
