"""The command ``ckpt inspect``: shows what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from ..options import Root
from ..printing import Printer

if TYPE_CHECKING:
    from ...analysis.inspection import Inspection

NAME = "inspect"
HELP = """Show what is in a checkpoint.

Reads headers only, runs no code and needs no torch. Layers that repeat are shown once: layers.{0..11} x 12 means twelve
layers with the same tensors. Wrappers such as module. are stripped from keys, and a note says so. -v shows a line for
each tensor instead of the tree, with its shard and ties, and shortens nothing. A quantised tensor is one weight in the
tree, with its encoding and bits per weight. Its parameters are those of the decoded weight, and --stats decodes it.
Exit status 1 if --stats finds a NaN or an infinity, or a weight that cannot be decoded because of one.
"""
EXAMPLES = """\b
Examples:
  ckpt inspect runs/en/best.pth
  ckpt inspect model.safetensors --include 'encoder.layers.0' --stats
"""


def run(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A checkpoint: a file, a folder or an index.")],
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Show only these keys. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Leave these keys out. Repeatable."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, metavar="N", help="Show only this many levels of modules.")
    ] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="size|key", help="Show the largest tensors first, or in the order of the file."),
    ] = "key",
    keys: Annotated[bool, typer.Option("--keys", help="Print the keys, one on each line, and nothing else.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the values: mean, deviation, extremes, NaN and Inf.")
    ] = False,
    model_class: Annotated[
        bool,
        typer.Option(
            "--class", help="Compare keys and shapes with those of the class in config.json (needs transformers)."
        ),
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Print the metadata of the file as well (safetensors).")
    ] = False,
    root: Root = None,
    *,
    printer: Printer,
) -> None:
    """Show what is in a checkpoint."""
    from ...api.inspect import inspect

    _check(sort, depth, keys=keys, stats=stats, full=printer.verbose)
    with printer.working("reading"):
        found = inspect(
            source, root=root, include=include or (), exclude=exclude or (), stats=stats, model_class=model_class
        )
    _print(found, printer, depth=depth, sort=sort, keys=keys, metadata=metadata)
    if found.summary is not None and found.summary.unsound:
        raise typer.Exit(1)


def _print(found: Inspection, printer: Printer, *, depth: int | None, sort: str, keys: bool, metadata: bool) -> None:
    if printer.answer(found):
        return
    if keys:
        printer.lines(_one_line(key) for key in _sorted(found, sort))
        return
    from ...render.inspect import inspection_view
    from ...render.stats import stats_view

    printer.show(inspection_view(found, depth=depth, by_size=sort == "size", full=printer.verbose))
    if found.stats is not None:
        printer.show("", stats_view(found))
    if metadata and not printer.quiet:
        printer.lines(["", "  metadata" if found.metadata else "  no metadata", *_entries(found)])
    printer.notes(note for note in found.notes if printer.verbose or not note.startswith("took "))


def _check(sort: str, depth: int | None, *, keys: bool, stats: bool, full: bool) -> None:
    from ...errors import ConfigError

    if sort not in ("size", "key"):
        raise ConfigError(f"--sort {sort} is not a known order.", hint="Use size or key.")
    if keys and (stats or depth is not None):
        other = "--stats" if stats else "--depth"
        raise ConfigError(
            f"--keys and {other} contradict each other: --keys prints only keys.", hint="Leave one of them out."
        )
    if full and depth is not None:
        raise ConfigError("-v and --depth contradict each other: -v shows every tensor.", hint="Leave one of them out.")


def _sorted(found: Inspection, sort: str) -> Iterable[str]:
    if sort == "key":
        return found.tensors
    return sorted(found.tensors, key=lambda key: -found.tensors[key].nbytes)


def _entries(found: Inspection) -> Iterable[str]:
    return (f"    {_one_line(key)} = {_one_line(value)}" for key, value in found.metadata.items())


def _one_line(key: str) -> str:
    from ...util.text import escape

    return escape(key, limit=1 << 20)
