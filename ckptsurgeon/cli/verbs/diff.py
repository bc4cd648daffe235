"""The command ``ckpt diff``: compares two checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Root
from ..printing import Printer

NAME = "diff"
HELP = """Compare two checkpoints, tensor by tensor.

Compares keys, shapes, dtypes and, with --values, values: the largest absolute difference, the L2 norm of the
difference divided by that of A, and the cosine between A and B. Formats, shards and wrappers such as module. do not
matter. With --values, quantised tensors are decoded before they are compared.
--renames compares values too, finds tensors under other names by their content, also in layers that were swapped, and
prints the --map rules that turn A's names into B's.
B may be a configuration, such as config.json: then A is compared with the keys, shapes and dtypes of its model; ckpt
fits also proposes rules that make A fit. Exit status 1 if they differ, or if --values could not compare a tensor.

With three or more checkpoints, the first is the base, and the tables call the others A, B and so on. Shows how far each
model has changed from the base, and whether the changes agree, which matters for a merge. For each pair of models: the
cosine between their changes, and, of the values that both changed, the share that moved in the same direction (50 % by
chance).
"""
EXAMPLES = """\b
Examples:
  ckpt diff before.pth after.safetensors
  ckpt diff old.bin new.safetensors --values --rtol 1e-5 --renames
  ckpt diff base tuned --values --depth 3 --exclude lm_head
  ckpt diff base tuned --by-layer
  ckpt diff base tuned-a tuned-b tuned-c --depth 3
"""


def run(
    first: Annotated[str, typer.Argument(metavar="A", help="The first checkpoint.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The second checkpoint, or a configuration.")],
    others: Annotated[
        list[str] | None,
        typer.Argument(metavar="[C]…", help="More checkpoints: each is compared with A, and with the others."),
    ] = None,
    values: Annotated[bool, typer.Option("--values", help="Compare the values as well.")] = False,
    rtol: Annotated[
        float,
        typer.Option(
            "--rtol",
            metavar="X",
            help="Treat values as equal if they differ by at most X times the value in B (relative tolerance).",
        ),
    ] = 0.0,
    atol: Annotated[
        float,
        typer.Option(
            "--atol", metavar="X", help="Treat values as equal if they differ by at most X (absolute tolerance)."
        ),
    ] = 0.0,
    renames: Annotated[
        bool,
        typer.Option(
            "--renames", help="Compare the values as well, and find tensors that have another name, by their content."
        ),
    ] = False,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="GLOB", help="Compare only these keys. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave these keys out. Repeatable.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="N", help="Show one row for each module N levels deep.")
    ] = None,
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="Show how much each layer has changed: a row for each layer, a column for each role, such as q_proj.",
        ),
    ] = False,
    root: Root = None,
    *,
    printer: Printer,
) -> None:
    """Compare checkpoints, and print the difference."""
    if others:
        _check_several(rtol=rtol, atol=atol, renames=renames)
        _show_changes(
            printer,
            first,
            [second, *others],
            include=include,
            exclude=exclude,
            depth=depth,
            by_layer=by_layer,
            root=root,
        )
        return
    from ...api.diff import diff

    _check(by_layer=by_layer, renames=renames)
    with printer.working("comparing") as progress:
        found = diff(
            first, second, values=values or by_layer, rtol=rtol, atol=atol, renames=renames, include=include or (),
            exclude=exclude or (), root=root, progress=progress,
        )  # fmt: skip
    if not printer.answer(found):
        from ...render.diff import difference_view

        if by_layer:
            from ...render.diff_layers import layers_view

            printer.show(layers_view(found))
        printer.show(difference_view(found, every=printer.verbose, depth=depth or (1 if by_layer else None)))
        if found.rules and not printer.quiet:
            from ...render.match import rule_lines

            printer.lines(rule_lines(found.rules, unwrap=found.unwrap))
        printer.notes(found.notes)
    if found.differs:
        raise typer.Exit(1)


def _check(*, by_layer: bool, renames: bool) -> None:
    from ...errors import ConfigError

    if by_layer and renames:
        raise ConfigError("--by-layer and --renames contradict each other.", hint="Leave one of them out.")


def _check_several(**options: float) -> None:
    from ...errors import ConfigError

    for name, value in options.items():
        if value:
            raise ConfigError(
                f"--{name} compares two checkpoints, not more.",
                hint=f"Leave --{name} out, or compare only two checkpoints.",
            )


def _show_changes(
    printer: Printer,
    base: str,
    models: list[str],
    *,
    include: list[str] | None,
    exclude: list[str] | None,
    depth: int | None,
    by_layer: bool,
    root: str | None,
) -> None:
    """Show how several models differ from their base; exit with 1 if a model differs."""
    from ...api.compare_changes import compare_changes

    with printer.working("comparing") as progress:
        found = compare_changes(
            base, models, include=include or (), exclude=exclude or (), root=root, progress=progress
        )
    if not printer.answer(found):
        from ...render.changes import changes_view

        if by_layer:
            from ...render.diff_layers import layers_of_models

            printer.show(layers_of_models(found))
        printer.show(changes_view(found, every=printer.verbose, depth=depth))
        printer.notes(found.notes)
    if found.differs:
        raise typer.Exit(1)
