"""The command ``ckpt layouts``: lists the layouts that ``--layout`` accepts, or recognises a checkpoint's layout."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Root
from ..printing import Printer

NAME = "layouts"
HELP = """List the layouts that --layout accepts, or say which of them a checkpoint has.

A layout is how one library names, orders and shapes the tensors of a network. A network in one layout of a family can
get every other layout of this family: ckpt convert SRC --layout NAME, ckpt rename SRC --layout NAME. A transplant into
a destination of the same family converts its sources without an option. The layout is recognised by the keys; only the
header is read. -v shows the library of each layout, and the code with which it was compared. Exit status 1 if the
layout of the checkpoint is not known.
"""
EXAMPLES = """\b
Examples:
  ckpt layouts
  ckpt layouts whisper-tiny.pt
"""


def run(
    source: Annotated[str | None, typer.Argument(metavar="[FILE|DIR]", help="The checkpoint to look at.")] = None,
    root: Root = None,
    *,
    printer: Printer,
) -> None:
    """List the layouts that are known, or recognise the layout of a checkpoint."""
    from ...api.layouts.layouts import layouts

    found = layouts(source, root=root)
    if not printer.answer(found):
        from ...render.layouts import layouts_view

        printer.show(layouts_view(found, every=printer.verbose))
    if source is not None and not found.found:
        raise typer.Exit(1)
