"""``ckpt diff``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Root
from ..sink import Sink

NAME = "diff"
HELP = """Compare two checkpoints, tensor by tensor.

Formats, shards, dtypes and wrappers such as module. do not matter, only keys, shapes, dtypes and, with --values,
values: max abs, the L2 norm of the difference over that of A, and the cosine between the two. --renames finds tensors
that moved by their content, and prints the --map rules that bring A's names to B's. Exit status 1 when they differ,
or when --values could not compare a tensor.
"""
EXAMPLES = """\b
Examples:
  ckpt diff before.pth after.safetensors
  ckpt diff old.bin new.safetensors --values --rtol 1e-5 --renames
  ckpt diff base tuned --values --depth 3 --exclude lm_head
"""


def run(
    first: Annotated[str, typer.Argument(metavar="A", help="A checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    values: Annotated[bool, typer.Option("--values", help="Compare the values too.")] = False,
    rtol: Annotated[
        float, typer.Option("--rtol", metavar="X", help="Values this close to B's, relatively, are equal.")
    ] = 0.0,
    atol: Annotated[float, typer.Option("--atol", metavar="X", help="Values this close are equal.")] = 0.0,
    renames: Annotated[
        bool, typer.Option("--renames", help="Find tensors under other names by their content.")
    ] = False,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Only keys that match; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave out keys that match; repeatable.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="N", help="A row for each module N levels deep.")
    ] = None,
    root: Root = None,
    *,
    sink: Sink,
) -> None:
    """Compare two checkpoints."""
    from ...api.diff import diff

    with sink.working("comparing") as progress:
        found = diff(
            first, second, values=values, rtol=rtol, atol=atol, renames=renames, include=include or (),
            exclude=exclude or (), root=root, progress=progress,
        )  # fmt: skip
    if not sink.answer(found):
        from ...render.diff import difference_view

        sink.show(difference_view(found, every=sink.verbose, depth=depth))
        if found.rules and not sink.quiet:
            from ...render.match import rule_lines

            sink.lines(rule_lines(found.rules, unwrap=found.unwrap))
        sink.notes(found.notes)
    if found.differs:
        raise typer.Exit(1)
