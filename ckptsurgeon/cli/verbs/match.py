"""``ckpt match``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Json, Root, Verbose
from ..sink import Sink

NAME = "match"
HELP = """Propose the rules that bring one model's names to another's.

From headers: names, shapes, the order and the numbers of layers. Each proposal says what speaks for it: the same name,
the same but for a prefix of most of the model, a name clearly nearer than any other, a shape nothing else has, or the
order among as many equals in one repeated layer. What stays ambiguous or unmatched is listed. Nothing is applied:
review the rules, then ckpt transplant --map-file.
"""
EXAMPLES = """\b
Examples:
  ckpt match fairseq.pt wav2vec2.safetensors
  ckpt match bert.safetensors mine.yaml -q > names.map; ckpt transplant bert.safetensors mine.yaml --map-file names.map
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint whose names are to change.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A configuration or checkpoint with the names wanted.")
    ],
    root: Root = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print the rules alone, one a line.")] = False,
    verbose: Verbose = False,
) -> None:
    """Propose rules."""
    from ...api.match import match

    sink = Sink(json, quiet, verbose)
    found = match(source, destination, root=root)
    if sink.answer(found):
        return
    if quiet:
        sink.lines(found.rules)
        return
    from ...render.match import proposal_view, rule_lines

    sink.lines(rule_lines(found.rules))
    sink.show(proposal_view(found, every=verbose))
    sink.notes(found.notes)
