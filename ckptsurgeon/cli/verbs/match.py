"""The command ``ckpt match``: proposes rules that turn one model's names into another's."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Json, Root, Task, Verbose
from ..printing import Printer

NAME = "match"
HELP = """Propose the rules that turn one model's names into another's.

Reads headers only: names, shapes, and the numbers of layers. Each proposal has a reason: the same name, the same name
except for a prefix that most of the model has, a name that is clearly more similar than all others or is known for the
same part of a transformer block, or a shape that no other tensor has. Ambiguous and unmatched keys are listed. Nothing
is applied: review the rules, then use ckpt transplant --map-file.
"""
EXAMPLES = """\b
Examples:
  ckpt match fairseq.pt wav2vec2.safetensors
  ckpt match bert.safetensors mine.yaml -q > names.map; ckpt transplant bert.safetensors mine.yaml --map-file names.map
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint whose names should change.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A configuration or checkpoint that has the wanted names.")
    ],
    task: Task = None,
    root: Root = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the rules, one on each line.")] = False,
    verbose: Verbose = False,
) -> None:
    """Propose rules that rename a source's keys to a destination's."""
    from ...api.match import match

    printer = Printer(json, quiet, verbose)
    found = match(source, destination, task=task, root=root)
    if printer.answer(found):
        return
    if quiet:
        printer.lines(found.rules)
        return
    from ...render.match import proposal_view, rule_lines

    printer.lines(rule_lines(found.rules))
    printer.show(proposal_view(found, every=verbose))
    printer.notes(found.notes)
