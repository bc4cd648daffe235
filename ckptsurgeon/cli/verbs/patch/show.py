"""The command ``ckpt patch show``: describes a patch from its index."""

from __future__ import annotations

from typing import Annotated

import typer

from ...printing import Printer

NAME = "patch show"
HELP = """Show the old and the new checkpoint of a patch, and how much of the new checkpoint the patch contains.

Only the index of the patch is read.
"""
EXAMPLES = """\b
Examples:
  ckpt patch show tuned.ckptpatch

\b
Exit status: 3 the file is missing, or not a valid patch.
"""


def run(
    patch: Annotated[str, typer.Argument(metavar="PATCH", help="A file that `ckpt patch make` has written.")],
    *,
    printer: Printer,
) -> None:
    """Read the index of a patch and show it."""
    from ....api.patch import read_patch
    from ....render.patch import patch_view

    found = read_patch(patch)
    if not printer.answer(found):
        printer.notes(found.notes)
        printer.show(patch_view(found, "patch"))
