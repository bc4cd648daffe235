"""The command ``ckpt rename``: renames the keys of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from ..in_place import carry_out_in_place, prepare_in_place
from ..options import Heads, Layout, Operations, Ruleset
from ..writing import StateDictAndExtras, Writing

NAME = "rename"
HELP = """Rename the keys of a checkpoint.

The first rule that matches a key renames it; keys that no rule matches keep their names. Rules match the keys as they
are in the file, with wrappers, unless --unwrap is given. It is an error if two keys get the same name, or if a rule
matches nothing. --layout needs no rules: it recognises the network by its keys. --in-place writes no new file, only
the header of SRC, if the new names fit there and no other program has the file open.
"""
EXAMPLES = """\b
Examples:
  ckpt rename wrapped.pth --map module= -o plain.safetensors
  ckpt rename whisper-tiny.pt --layout transformers -o model.safetensors
  ckpt rename model.safetensors --in-place --map model.language_model=model
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
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="Write the new names into the header of SRC, a local safetensors file or folder; values stay as they "
            "are.",
        ),
    ] = False,
    operations: Operations = None,
    layout: Layout = None,
    heads: Heads = None,
    *,
    state_dict: StateDictAndExtras,
    writing: Writing,
) -> None:
    """Write a checkpoint with its keys renamed."""
    from ...api.edit import rename

    if in_place:
        prepare_in_place(source, writing)
    else:
        writing.check()
    plan = rename(
        source, map=map, map_file=map_file, ruleset=ruleset, operations=operations, layout=layout, heads=heads,
        **state_dict.arguments,
    )  # fmt: skip
    if in_place:
        carry_out_in_place(plan, writing)
    else:
        writing.carry_out(plan)
