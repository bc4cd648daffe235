"""The command ``ckpt view``: writes an HTML page that shows a checkpoint."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from ..first_process import run_by_the_first
from ..options import Force, Root, Wait
from ..printing import Printer
from ..showing import check_page, show_page

NAME = "view"
HELP = """Write an HTML page to explore a checkpoint in a browser.

The page is one file that loads no other files, except the sounds of the clips of a run. It has a map of the network by
parameters or bytes, down to each tensor; a tree that can be searched by words and filtered by patterns as in --include;
and shape, dtype, bytes, file and ties of each tensor. For two sources, it shows the differences; for more, the changes
of each from the first. With several sources, or with --stats, a table has a row for each layer and a column for each
role, such as q_proj.
For an output of ckpt it shows the class and rule of each tensor; for a folder of ckpt train, the curves, checks and
verdict. Without -o, the page is written to the working directory, with a name made from SRC.
"""
EXAMPLES = """\b
Examples:
  ckpt view model.safetensors --stats --check
  ckpt view before.pth after.safetensors -o difference.html
  ckpt view base tuned-a tuned-b
  ckpt view runs/ru
"""


@run_by_the_first
def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The checkpoint, or the folder of a run.")],
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SRC2]…", help="Checkpoints to compare with SRC; if there are several, SRC is their base."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="PAGE.html", help="Write the page here.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the values: mean, deviation, extremes, NaN, histogram.")
    ] = False,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Compare the values of two checkpoints, or only their headers.")
    ] = True,
    check: Annotated[bool, typer.Option("--check", help="Run ckpt check, and show what it finds.")] = False,
    root: Root = None,
    force: Force = False,
    wait: Wait = None,
    *,
    printer: Printer,
) -> None:
    """Write an HTML page that shows a checkpoint, two checkpoints or a training run."""
    from ...api.view import view

    sources = [source, *(others or ())]
    target = output or page_name(sources)
    check_page(target)
    with printer.working("reading", target) as progress:
        page = view(
            *sources,
            stats=stats,
            values=values,
            check=check,
            root=root,
            output=target,
            force=force,
            wait=wait,
            progress=progress,
        )
    show_page(printer, page)


def page_name(sources: list[str]) -> str:
    """Return the file name of a page, from the names of its sources: ``model.html``, ``before-after.html``.

    For a URL, only the last part of its path is used.
    """
    return f"{'-'.join(map(_stem, sources))}.html"


def _stem(source: str) -> str:
    path = os.path.abspath(source)
    if "://" in source:
        from urllib.parse import urlsplit

        path = urlsplit(source).path
    stem = os.path.splitext(os.path.basename(path.rstrip("/")))[0]
    return re.sub(r"[^\w.+-]", "_", stem).lstrip("-.")[:80] or "page"
