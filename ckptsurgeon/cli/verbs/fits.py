"""The command ``ckpt fits``: says whether a checkpoint loads into a model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..options import Root, Task
from ..printing import Printer

NAME = "fits"
HELP = """Say whether a checkpoint loads into a model, and what would make it fit.

Compares keys and shapes, from headers, as load_state_dict(strict=True) does: keys that the library itself ties may be
missing, and other dtypes are cast. DST is a configuration, the folder of a model (its config.json is used), or another
checkpoint. A checkpoint also fits if only from_pretrained of transformers loads all of it, by converting its layout;
the first lines say so. Lists the keys that are missing, unexpected or of another shape. If rules that rename
keys and a ckpt transplant command make the checkpoint fit, they are the last lines; the plan has been checked. For two
model folders, notes list how their tokenisers differ, and which fields of their configurations let equal weights
compute different results. Exit status 1 if the checkpoint does not load.
"""
EXAMPLES = """\b
Examples:
  ckpt fits tuned.safetensors base/config.json
  ckpt fits bert/ classifier.yaml -q && echo loads
"""


def run(
    source: Annotated[str, typer.Argument(metavar="CKPT", help="The checkpoint to load.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="The destination: a configuration, model folder or checkpoint.")
    ],
    task: Task = None,
    root: Root = None,
    *,
    printer: Printer,
) -> None:
    """Say whether a checkpoint loads into a destination; exit with 1 if it does not."""
    from ...api.fits import fits

    with printer.waiting(_waits_for):
        found = fits(source, destination, task=task, root=root)
    if not printer.answer(found):
        from ...render.fits import command_lines, fit_view

        printer.show(fit_view(found, every=printer.verbose))
        if not printer.quiet:
            printer.lines(command_lines(found))
        printer.notes(found.notes)
    if not found.fits:
        raise typer.Exit(1)


def _waits_for() -> str:
    """Return a text on what the command waits for: headers or, once transformers is imported, the model's class."""
    if "transformers" in sys.modules:
        return "building the model's class with transformers; the next time, its keys come from a cache"
    return "reading headers"
