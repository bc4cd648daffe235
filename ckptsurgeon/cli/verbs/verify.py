"""The command ``ckpt verify``: checks an output against its recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from ..printing import Printer

NAME = "verify"
HELP = """Check an output against the recipe that is stored in it.

Checks every checksum first, then compares every copied and computed tensor with its source, bit for bit. Initialised
tensors are compared with the checksum that was stored when they were drawn. NOT COMPARED means that only checksums
were checked: a source is missing or has changed, or --sample left the tensor out. If the output has no recipe, --plan
gives no checksums: if its sources are gone, too, only names, dtypes and shapes are checked. Then the last line is
"not verified" (in --json, "verified" is false), and the exit status is 0. Exit status 1 if anything fails.
"""
EXAMPLES = """\b
Examples:
  ckpt verify ru.init.safetensors
  ckpt verify ru.init.safetensors --source best.pth=/archive/en/best.pth
  ckpt verify tuned/ --patch tuned.ckptpatch
"""


def run(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output that ckpt wrote.")],
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="PLAN.json", help="Compare the output with this plan as well."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME=PATH", help="The source NAME of the recipe is now at PATH. Repeatable."),
    ] = None,
    plugin: Annotated[
        str | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="Run this Python file, which has the merge method of the output."
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            help="Of the merged tensors, compute only N again to check them, evenly spread over the output.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="FILE", help="Fail unless every file is signed with this key; the public half is enough."
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            "--patch",
            metavar="FILE",
            help="Compare the files with the checksums in this patch; if several were applied, give the last one.",
        ),
    ] = None,
    *,
    printer: Printer,
) -> None:
    """Check an output against its recipe; exit with 1 if anything differs."""
    from ...api.verify import verify

    with printer.working("checking") as progress:
        found = verify(
            output, plan=plan, sources=_moved(source or []), plugin=plugin, sample=sample, key=key, patch=patch,
            progress=progress,
        )  # fmt: skip
    if not printer.answer(found):
        from ...render.verification import verification_view

        printer.show(verification_view(found, full=printer.verbose))
        if printer.quiet:  # the printed result contains the notes, too
            printer.notes(dict.fromkeys(note.why for note in found.notes))
    if not found.ok:
        raise typer.Exit(1)


def _moved(pairs: list[str]) -> dict[str, str]:
    from ...errors import ConfigError

    moved = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and name and path):
            raise ConfigError(
                f"--source {pair} does not have the form NAME=PATH.", hint="NAME is the name of a source in the recipe."
            )
        moved[name] = path
    return moved
