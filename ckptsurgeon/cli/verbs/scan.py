"""``ckpt scan``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..sink import Sink

NAME = "scan"
HELP = """Say what reading a file would import and call, without running it.

For a file, or every file of a folder, by content and not by name: pickles are decoded, archives are looked into, and
never unpickled, imported or extracted. plain data is numbers, text and containers; tensor rebuilding is what torch and
numpy need to make tensors of them; unknown code is every other name, with what it would be called with. It is a fact
and no accusation: ckpt inspect opens such a file all the same, since it runs nothing.

Exit status: 0 all is plain data or tensor rebuilding; 1 something is beyond that, or could not be judged whole;
2 usage; 3 there is no such file, or it cannot be read.
"""
EXAMPLES = """\b
Examples:
  ckpt scan downloaded/model.pth
  ckpt scan models/ --json > scan.json
"""


def run(
    path: Annotated[str, typer.Argument(metavar="FILE|DIR", help="A file, or a folder with all that lies in it.")],
    *,
    sink: Sink,
) -> None:
    """Scan a file or folder."""
    from ...api.scan import scan

    with sink.working("scanning"):
        found = scan(path)
    if not sink.answer(found):
        from ...render.scan import scan_view

        sink.show(scan_view(found, every=sink.verbose))
    if not found.ok:
        raise typer.Exit(1)
