"""``ckpt verify``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..sink import Sink

NAME = "verify"
HELP = """Check an output against the recipe it carries.

First every checksum, then every copied and computed tensor against its source, bit for bit. Tensors that were drawn
are held against the checksum of the day they were drawn. PASS and FAIL are what was found; NOT COMPARED means that a
source is gone or has changed, so that only checksums hold. Exit status 1 when anything fails.
"""
EXAMPLES = """\b
Examples:
  ckpt verify ru.init.safetensors
  ckpt verify ru.init.safetensors --source best.pth=/archive/en/best.pth
"""


def run(
    output: Annotated[str, typer.Argument(metavar="OUT", help="What ckpt wrote.")],
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="PLAN.json", help="Hold the output against this plan too."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME=PATH", help="Where a source is now; repeatable."),
    ] = None,
    plugin: Annotated[
        str | None, typer.Option("--plugin", metavar="FILE.py", help="The file of the merge method that made it.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", help="Compute only N of the merged tensors again, evenly spread."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FILE", help="Whole, and signed with this key; the public half is enough."),
    ] = None,
    *,
    sink: Sink,
) -> None:
    """Check an output."""
    from ...api.verify import verify

    with sink.working("checking") as progress:
        found = verify(
            output, plan=plan, sources=_moved(source or []), plugin=plugin, sample=sample, key=key, progress=progress
        )
    if not sink.answer(found):
        from ...render.verification import verification_view

        sink.show(verification_view(found, full=sink.verbose))
    if not found.ok:
        raise typer.Exit(1)


def _moved(pairs: list[str]) -> dict[str, str]:
    from ...errors import ConfigError

    moved = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (equals and name and path):
            raise ConfigError(f"--source {pair} is not NAME=PATH.", hint="The names are those of the recipe.")
        moved[name] = path
    return moved
