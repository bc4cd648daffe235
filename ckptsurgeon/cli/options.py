"""Options that several verbs share, spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "DryRun", "Force", "Json", "KeepExtras", "Key", "MaxShard", "Memory", "Operations", "Output", "OutputUnlessDry",
    "Quiet", "Root", "Ruleset", "RunCode", "To", "Unwrap", "Verbose", "Wait",
]  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON on stderr.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="No tables and no notes: only errors, and data that was asked for.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more: every tensor, every failure.")]
Root = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Where in the file the state dict hangs, as in model_ema; . is the top level."),
]
Output = Annotated[
    str | None, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to write; a recipe may say it itself.")
]
To = Annotated[
    str | None, typer.Option("--to", metavar="FORMAT", help="safetensors, pth or dcp; else the suffix decides.")
]
MaxShard = Annotated[
    str | None,
    typer.Option("--max-shard-size", metavar="SIZE", help="Write a folder of shards of this size, as in 5GB or 200MB."),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="The most that computing may take, as in 512MB; 1GiB."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists. An input is never replaced.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Sign every file of the output with this private key (Ed25519): OUT.sig, of a folder OUT/model.sig.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="[SECONDS]",
        help="Wait for another run that writes the same output; else that is an error.",
    ),
]
OutputUnlessDry = Annotated[
    str | None, typer.Option("-o", "--output", metavar="FILE|DIR", help="Where to write; needed unless -n.")
]
DryRun = Annotated[
    bool,
    typer.Option("-n", "--dry-run", help="Show the plan and write nothing; with --json, print it for ckpt apply."),
]
RunCode = Annotated[
    bool,
    typer.Option("--run-code", help="With -n: run the code that a recipe names (plugin, _target_) to plan with it."),
]
Ruleset = Annotated[
    list[str] | None,
    typer.Option(
        "--ruleset",
        metavar="NAME",
        help="Rules by name, after those of --map: weight-norm, weight-norm-old, ddp, lightning, compile, "
        "espnet-deepspeed, speechbrain; coqui-stt and coqui-stt-tensorflow convert between layouts; repeatable.",
    ),
]
Operations = Annotated[
    str | None,
    typer.Option(
        "--operations",
        metavar="FILE",
        help="Operations in YAML that come before all rules: split, concat, stack, unstack, add, copy, transpose, "
        "permute, reshape, scale.",
    ),
]
Unwrap = Annotated[bool, typer.Option("--unwrap", help="Strip wrappers such as module. from the keys.")]
KeepExtras = Annotated[
    bool,
    typer.Option("--keep-extras", help="Carry entries that are no tensors (epoch, arguments) where they are plain."),
]
