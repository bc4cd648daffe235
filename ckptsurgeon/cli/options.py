"""Declares the options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Axis",
    "DryRun",
    "Encoding",
    "Engine",
    "Force",
    "Heads",
    "Json",
    "KeepExtras",
    "Key",
    "Layout",
    "MaxShard",
    "Memory",
    "Mesh",
    "Operations",
    "Output",
    "OutputHere",
    "OutputUnlessDry",
    "Prove",
    "Quiet",
    "Ranks",
    "Restart",
    "Root",
    "Ruleset",
    "RunCode",
    "SetMetadata",
    "Task",
    "To",
    "Unwrap",
    "Verbose",
    "Wait",
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and errors as JSON to stderr.")]
Quiet = Annotated[
    bool,
    typer.Option("-q", "--quiet", help="Print no tables, and of the notes only warnings."),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print more: every tensor, every failure.")]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="The task of an ESPnet configuration (asr, st, tts …), if its entries fit several tasks.",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="Use the state dict in this entry of the file, such as model_ema; . is the top level."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Write the tensors with the names, order and shapes of another library, such as transformers, openai or "
        "gguf (llama.cpp); ckpt layouts lists them. keep leaves the layout as it is.",
    ),
]
Heads = Annotated[
    str | None,
    typer.Option(
        "--heads",
        metavar="N[/M]",
        help="With --layout: the numbers of heads of queries (N) and of keys and values (M), if no config.json or "
        "params.json next to the weights has them.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE|DIR", help="Write the output here; a recipe may contain the path."),
]
OutputHere = Annotated[str | None, typer.Option("-o", "--output", metavar="OUT", help="Write the output here.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="Write this format, whatever the output's suffix is: safetensors, pth, npz, flax, hdf5, gguf, "
        "dcp, diffusers, fsdp, tensorflow or tp.",
    ),
]
MaxShard = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size", metavar="SIZE", help="Write a folder of shards of at most this size, such as 5GB or 200MB."
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option("--ranks", metavar="NUMBER", help="With --to fsdp or tp: the number of ranks; each rank has a file."),
]
Axis = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        metavar="GLOB=AXIS",
        help="Split the tensors that match along this axis, or store them whole in every rank (GLOB=none); the last "
        "option that matches wins. [default: fsdp splits parameters along axis 0, tp splits nothing]",
    ),
]
Mesh = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        metavar="DEVICE:NAME",
        help="With --to fsdp: the device of the mesh, and the name of its dimension. [default: cuda:fsdp]",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Use at most this much memory to compute, such as 512MB. [default: 1GiB]"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists. An input is never replaced.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Sign every file of the output with this private key (Ed25519), in OUT.sig or FOLDER/model.sig.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="[SECONDS]",
        help="Wait for another run that writes the same output, instead of failing.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="ray[://HOST:PORT]",
        help="Write the shards of the output as tasks of Ray, on this cluster.",
    ),
]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Remove the finished shards of an interrupted run and start again, instead of continuing it; not those of "
        "a run with --consume.",
    ),
]
Consume = Annotated[
    bool,
    typer.Option(
        "--consume",
        help="Delete each shard of the sources as soon as its results are on disk; ckpt asks twice before the run. The "
        "base of a merge is a source, too.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="With --consume: delete without asking.")]
Prove = Annotated[
    bool,
    typer.Option(
        "--prove",
        help="Run the networks of source and output after writing; exit with 1 if their outputs differ by more than "
        "rounding explains.",
    ),
]
OutputUnlessDry = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE|DIR", help="Write the output here; required unless -n is given."),
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        metavar="N",
        help="With -n: show how much each of N processes would read and write, its memory, and its time.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "-n", "--dry-run", help="Show the plan and write nothing; with --json, print the plan for ckpt apply."
    ),
]
RunCode = Annotated[
    bool,
    typer.Option(
        "--run-code", help="With -n: run the code that the recipe refers to (plugin, _target_); the plan may need it."
    ),
]
Ruleset = Annotated[
    list[str] | None,
    typer.Option(
        "--ruleset",
        metavar="NAME",
        help="Apply this set of rules, after the rules of --map: weight-norm, weight-norm-old, ddp, lightning, "
        "compile, espnet-deepspeed, speechbrain; coqui-stt and coqui-stt-tensorflow convert between layouts. "
        "Repeatable.",
    ),
]
SetMetadata = Annotated[
    list[str] | None,
    typer.Option(
        "--set-metadata",
        metavar="KEY=VALUE",
        help="Set an entry of the metadata of safetensors or GGUF; an empty value removes it. Repeatable.",
    ),
]
Operations = Annotated[
    str | None,
    typer.Option(
        "--operations",
        metavar="FILE",
        help="Apply the operations in this YAML file before all rules: split, concat, stack, unstack, add, mean, copy, "
        "transpose, permute, reshape, slice, pad, tile, pool, repeat, halves, pairs, scale, shift, constant, "
        "dequantize, quantize, blocks.",
    ),
]
Encoding = Annotated[
    str,
    typer.Option(
        "--encoding",
        metavar="keep|dequantize",
        help="For quantised models: write the output in the same encoding, or write decoded values.",
    ),
]
Unwrap = Annotated[
    bool, typer.Option("--unwrap", help="Remove prefixes that training added, such as module., from the keys.")
]
KeepExtras = Annotated[
    bool,
    typer.Option(
        "--keep-extras", help="Also write entries that are not tensors (epoch, arguments), if they are plain data."
    ),
]
