"""Arguments and options that several verbs of adapters share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Adapter", "Adapters", "Energy", "KeysOf", "Rank", "Weights"]

Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter: a PEFT or mlx-lm folder, or a file.")]
Adapters = Annotated[list[str], typer.Argument(metavar="ADAPTER…", help="Adapters: PEFT or mlx-lm folders, or files.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="W,W…",
        help="Give a weight for each adapter, in order, such as 0.7,0.3. [default: 1 each]",
    ),
]
KeysOf = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="The base model, for adapters with kohya's names of modules; only its keys are read.",
    ),
]
Rank = Annotated[int | None, typer.Option("--rank", metavar="R", help="Use at most this rank.")]
Energy = Annotated[
    float | None,
    typer.Option("--energy", metavar="SHARE", help="Keep this share of the squared singular values of a module."),
]
