"""The command ``ckpt scan``: shows what reading a file would import and call."""

from __future__ import annotations

from typing import Annotated

import typer

from ..printing import Printer

NAME = "scan"
HELP = """Show what reading a file would import and call, without running it.

Judges a file, or every file of a folder, by its content and not by its name: pickles are decoded and archives are
searched; nothing is unpickled, imported or extracted. "plain data" is numbers, strings and containers; "tensor
rebuilding" is the functions with which torch and numpy make tensors; "unknown code" is every other function or class,
with the arguments of its call. Unknown code need not be malicious, and ckpt inspect still opens such a file, since it
runs no code.

Exit status: 0 only plain data and tensor rebuilding; 1 unknown code was found, or a file could not be judged
completely; 2 usage; 3 the file does not exist or cannot be read.
"""
EXAMPLES = """\b
Examples:
  ckpt scan downloaded/model.pth
  ckpt scan models/ --json > scan.json
"""


def run(
    path: Annotated[str, typer.Argument(metavar="FILE|DIR", help="The file, or a folder whose files are all scanned.")],
    *,
    printer: Printer,
) -> None:
    """Show what reading a file, or the files in a folder, would import and call."""
    from ...api.scan import scan

    with printer.working("scanning"):
        found = scan(path)
    if not printer.answer(found):
        from ...render.scan import scan_view

        printer.show(scan_view(found, every=printer.verbose))
    if not found.ok:
        raise typer.Exit(1)
