"""The command ``ckpt rename``: renames the keys of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Heads, Layout, Operations, Ruleset, StateDictAndExtras
from ..writing import Writing

NAME = "rename"
HELP = """Rename the keys of a checkpoint.

The first rule that matches a key renames it; keys that no rule matches keep their names. Rules match the keys as they
are in the file, with wrappers, unless --unwrap is given. It is an error if two keys get the same name, or if a rule
matches nothing. --layout needs no rules: it recognises the network by its keys.
"""
EXAMPLES = """\b
Examples:
  ckpt rename wrapped.pth --map module= -o plain.safetensors
  ckpt rename whisper-tiny.pt --layout transformers -o model.safetensors
  ckpt rename bert.pth --map 'encoder.layer.{n}.**=layers.{n}.**' --map-file names.map -o renamed.pth
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint whose keys are renamed.")],
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="FROM=TO", help="Rename keys by this rule. Repeatable; the first rule that matches wins."
        ),
    ] = None,
    map_file: Annotated[
        str | None, typer.Option("--map-file", metavar="FILE", help="Read rules from this file, one on each line.")
    ] = None,
    ruleset: Ruleset = None,
    operations: Operations = None,
    layout: Layout = None,
    heads: Heads = None,
    *,
    state_dict: StateDictAndExtras,
    writing: Writing,
) -> None:
    """Write a checkpoint with its keys renamed."""
    from ...api.edit import rename

    writing.check()
    plan = rename(
        source, map=map, map_file=map_file, ruleset=ruleset, operations=operations, layout=layout, heads=heads,
        **state_dict.arguments,
    )  # fmt: skip
    writing.carry_out(plan)
