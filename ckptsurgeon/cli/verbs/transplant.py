"""The command ``ckpt transplant``: puts weights into another configuration or checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from ...errors import ConfigError
from ..new_tokens import NewTokenOptions
from ..options import (
    Encoding,
    Heads,
    Layout,
    Operations,
    Root,
    Ruleset,
    SetMetadata,
    Task,
)
from ..showing import check_writes_no_model, show_explained
from ..writing import Writing, metadata_of

NAME = "transplant"
HELP = """Put weights into another configuration, and write a checkpoint that is ready to train.

Every tensor of the destination is accounted for: copied, cast, reshaped ((1,) and 0-d), derived (made by an operation),
resized (by a policy for shapes), mapped (row by row, --vocab), initialised by the destination's own initialiser, or
kept (if the destination is a checkpoint). DST is a YAML configuration or a checkpoint. Patterns match modules and keys:
decoder matches decoder.out.weight, but not decoder2. --include, --exclude and --map match the source's keys, the other
options match the destination's keys.
"""
EXAMPLES = """\b
Examples:
  ckpt transplant src.pth dst.yaml --exclude decoder
  ckpt transplant --source en.pth --source lm.pth:decoder:decoder dst.yaml --on-mismatch 'ctc.**=init' -n
  ckpt transplant en/ de/config.json --vocab en/tokenizer.json:de/tokenizer.json --new-tokens omp -o out/
  ckpt transplant vit.pth dst.yaml --on-mismatch pos_embed=positions-2d --explain pos_embed
"""


def run(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[SRC] DST", help="The source (unless --source is given) and the destination."),
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="SRC",
            help="Take weights from FILE or FILE:SRC_KEY:DST_KEY:EXCLUDE_KEYS. Repeatable; later sources win.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Take only these source keys. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="GLOB", help="Leave these source keys out, even if --include matches. Repeatable."
        ),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO",
            help="Rename source keys by this rule. Repeatable; the first rule that matches wins.",
        ),
    ] = None,
    map_file: Annotated[
        str | None, typer.Option("--map-file", metavar="FILE", help="Read rules from this file, one on each line.")
    ] = None,
    ruleset: Ruleset = None,
    operations: Operations = None,
    layout: Layout = None,
    heads: Heads = None,
    vocab: Annotated[
        str | None,
        typer.Option(
            "--vocab",
            metavar="SRC:DST|place",
            help="Copy rows by token: give the token lists of the source and of the destination, in any toolkit's "
            "format; place: copy row n to row n even if the tokenisers differ.",
        ),
    ] = None,
    vocab_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--vocab-keys",
            metavar="GLOB[=AXIS]",
            help="The tensors with a vocabulary axis, if the destination does not define them. Repeatable.",
        ),
    ] = None,
    on_mismatch: Annotated[
        list[str] | None,
        typer.Option(
            "--on-mismatch",
            metavar="[GLOB=]POLICY",
            help="If shapes differ: error, init, slice, pad, overlap, interpolate, positions-1d, positions-2d, "
            "patch, channels or center, some with arguments, as in positions-2d:prefix=1. Repeatable.",
        ),
    ] = None,
    ignore_mismatch: Annotated[
        bool,
        typer.Option("--ignore-mismatch", help="Initialise tensors whose shapes differ; short for --on-mismatch init."),
    ] = False,
    on_missing: Annotated[
        str,
        typer.Option("--on-missing", metavar="init|error", help="Initialise tensors that are in no source, or fail."),
    ] = "init",
    reinit: Annotated[
        list[str] | None,
        typer.Option(
            "--reinit",
            metavar="GLOB",
            help="Initialise these destination keys even if the source has them. Repeatable.",
        ),
    ] = None,
    drop_last: Annotated[
        int,
        typer.Option(
            "--drop-last",
            metavar="N",
            help="Initialise the last N layers, in the order of the destination; 1 means the output layer.",
        ),
    ] = 0,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="GLOB",
            help="Fail unless all of these destination keys come from a source. Repeatable.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a key is missing or unused.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="keep|DTYPE",
            help="Keep the source's dtypes, or cast all floats to one, such as bf16. [default: the destination's]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed the initialisers with this number.")] = 0,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            help="Explain where the tensors of these destination keys come from, and why; write nothing.",
        ),
    ] = None,
    encoding: Encoding = "keep",
    set_metadata: SetMetadata = None,
    root: Root = None,
    task: Task = None,
    no_constructor_weights: Annotated[
        bool,
        typer.Option(
            "--no-constructor-weights", help="Build the destination without the weights that its constructor loads."
        ),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE|DIR", help="Write the output here. [default: DST.init.SUFFIX next to DST]"
        ),
    ] = None,
    *,
    rows: NewTokenOptions,
    writing: Writing,
) -> None:
    """Plan which tensors of the sources go into the destination, and write the output (or only show the plan)."""
    from ...api.transplant.transplant import transplant

    sources, destination = _split(paths, source or [])
    policies = _mismatch_policies(on_mismatch or [], ignore=ignore_mismatch)
    if explain:
        check_writes_no_model(
            output=output, to=writing.to, max_shard_size=writing.max_shard_size, force=writing.force,
            **writing.shared.given,
        )  # fmt: skip
    if explain:
        writing = replace(writing, dry_run=True)
    elif output is None:
        written = _default_output(destination, writing.to, writing.max_shard_size)
        writing = replace(writing, output=written)
    writing.check()
    plan = transplant(
        sources, destination, include=include or (), exclude=exclude or (), map=map or (), map_file=map_file,
        ruleset=ruleset, operations=operations, layout=layout, heads=heads, vocab=vocab,
        vocab_keys=vocab_keys or (), **vars(rows), on_mismatch=policies, on_missing=on_missing, reinit=reinit or (),
        drop_last=drop_last, require=require or (), strict=strict, dtype=dtype, seed=seed,
        encoding=encoding, root=root, task=task, constructor_weights=not no_constructor_weights,
        metadata=metadata_of(set_metadata),
    )  # fmt: skip
    if explain:
        show_explained(writing.printer, plan, explain)
    else:
        writing.carry_out(plan)


def _split(paths: list[str], sources: list[str]) -> tuple[list[str], str]:
    if len(paths) != (1 if sources else 2):
        raise ConfigError(
            "transplant needs exactly one source and one destination."
            if not sources
            else "with --source, give only the destination.",
            hint="Write ckpt transplant SRC DST, or ckpt transplant --source A --source B DST.",
        )
    return (sources, paths[0]) if sources else (paths[:1], paths[1])


def _mismatch_policies(on_mismatch: Sequence[str], *, ignore: bool) -> list[str]:
    """Return the values of --on-mismatch, preceded by "init" if ``ignore`` (--ignore-mismatch) is true.

    Each value is a policy for tensors whose shapes differ. Raises ConfigError if --ignore-mismatch contradicts a value.
    """
    other = next((text for text in on_mismatch if ignore and "=" not in text and text != "init"), None)
    if other is not None:
        raise ConfigError(
            f"--ignore-mismatch and --on-mismatch {other} contradict each other.",
            hint="Leave one of the two out, or limit --on-mismatch to some keys, as in --on-mismatch ctc=init.",
        )
    return [*(["init"] if ignore else []), *on_mismatch]


def _default_output(destination: str, to: str | None, max_shard_size: str | None) -> str:
    """Return the path of the output if -o is not given: next to the destination, with the suffix of the format.

    ``to`` and ``max_shard_size`` are the options with these names. Raises ConfigError if the destination is remote.
    """
    if "://" in destination:
        raise ConfigError(
            "no output is given, and the destination is remote, so the output cannot be written next to it.",
            hint="Set the output with -o.",
        )
    stem = f"{os.path.splitext(destination.rstrip('/'))[0]}.init"
    if max_shard_size is not None:
        return stem
    from ...api.apply import output_suffixes

    return stem + "".join(output_suffixes().get(to or "safetensors", (".safetensors",))[:1])
