"""Options that several verbs share, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Force", "Json", "MaxShard", "Output", "Quiet", "Root", "To", "Verbose"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON on stderr.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="No tables and no notes: only errors, and data that was asked for.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more: every tensor, every failure.")]
Root = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Where in the file the state dict hangs, as in model_ema; . is the top level."),
]
Output = Annotated[str, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to write.")]
To = Annotated[str | None, typer.Option("--to", metavar="FORMAT", help="safetensors or pth; else the suffix decides.")]
MaxShard = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Write a folder of shards of this size, as in 5GB."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists. An input is never replaced.")]
