"""``view``: writes a page to look around in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import cast

from ..analysis.inspection import inspection_of
from ..analysis.page.contents import Page, Shown, contents_of
from ..analysis.page.html import page_html
from ..analysis.page.runs import FILES, Run, is_run, read_run
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.in_memory import path_of
from ..checkpoint.opening import open_checkpoint
from ..errors import ConfigError, VerifyError
from ..planning.recipe import Recipe
from ..planning.recipe_text import parse_recipe
from ..storage.read.base import File
from ..storage.read.uri import open_source
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, Path, Progress

__all__ = ["view"]


def view(
    path: CheckpointLike,
    other: CheckpointLike | None = None,
    *,
    stats: bool = False,
    values: bool = True,
    root: str | None = None,
    output: Path | None = None,
    force: bool = False,
    wait: float | None = None,
    progress: Progress | None = None,
) -> Page:
    """Return a page about a checkpoint, a training run's folder, or what differs between two checkpoints.

    The page is one HTML file that loads nothing; it is written to ``output``, if that is given. Of an output of ours it
    shows the recipe: what became of each tensor. ``stats`` reads all values for statistics and histograms. Two
    checkpoints are compared by values, and by content under other names, unless ``values`` is off: then by headers
    alone. ``root`` is the state dict of both; ``wait`` is as of ``apply``.

    Raises what ``open_checkpoint`` raises, ConfigError for what does not go together, and OutputError where the output
    exists (without ``force``), is an input, or cannot be written.
    """
    given = [path] if other is None else [path, other]
    if other is None and not values:
        raise ConfigError("--no-values compares two by their headers, and there is one.", hint="Leave it out.")
    target = None if output is None else os.fspath(output)
    if target is not None:
        _check(target, force=force)
    run = _run([path_of(one) for one in given if isinstance(one, (str, os.PathLike))], len(given))
    with ExitStack() as stack:
        if run is not None:
            given = [os.path.join(run.path, run.model)] if run.model else []
        opened = [stack.enter_context(open_checkpoint(one, root)) for one in given]
        shown, notes = _looked_at(opened, run, stats=stats)
        if len(opened) > 1:
            shown = _compared(shown, opened, values=values, progress=progress)
        data = contents_of(shown)
        titles = [one.path for one in opened] if run is None else [run.path]
        page = Page(page_html(data, _title(titles)), len(data["tensors"]["rest"]), target, notes)
        if target is not None:
            from ..storage.write.staging import write_text

            inputs = [file for one in opened for file in one.open_files().values()]
            inputs += [stack.enter_context(closing(file)) for file in _files(run)]
            write_text(target, page.html, inputs=inputs, force=force, wait=wait)
    return page


def _check(output: str, *, force: bool) -> None:
    """Raise OutputError, before anything is read, for an output that cannot be."""
    from ..storage.write.output_checks import check_output

    check_output(output, (), force=force, folder=False)


def _run(names: Sequence[str], of: int) -> Run | None:
    """Return the run of which one of these is the folder, None for none; raises ConfigError where there are more."""
    folders = [name for name in names if is_run(name)]
    if not folders:
        return None
    if of > 1:
        raise ConfigError(
            f"{escape(folders[0])} is the folder of a run, whose page stands alone.",
            hint="To compare models, name their checkpoints, as in runs/ru/best.safetensors.",
        )
    return read_run(folders[0])


def _files(run: Run | None) -> Iterator[File]:
    """Yield the files of a run that were read."""
    paths = [] if run is None else [os.path.join(run.path, name) for name in FILES]
    for path in paths:
        if os.path.isfile(path):
            yield cast("File", open_source(path))


def _looked_at(opened: Sequence[Checkpoint], run: Run | None, *, stats: bool) -> tuple[Shown, tuple[str, ...]]:
    """Return what headers tell, and with ``stats`` values; and what there is to say."""
    found = [inspection_of(one, stats=stats) for one in opened]
    notes = [note for one in found for note in one.notes]
    histograms: dict[str, tuple[int, ...]] = {}
    if stats:
        from ..analysis.stats import histogram_of

        for checkpoint, one in zip(opened, found, strict=True):
            for key, figures in (one.stats or {}).items():
                if figures is not None:
                    histograms[key] = histogram_of(checkpoint, checkpoint[key], figures)
    recipe = None
    if len(opened) == 1:
        recipe, faults = _recipe(opened[0])
        notes += faults
    first, second = [*found, None, None][:2]
    return Shown(first, second, recipe=recipe, run=run, histograms=histograms), tuple(notes)


def _recipe(checkpoint: Checkpoint) -> tuple[Recipe | None, list[str]]:
    """Return the recipe in a checkpoint, if it has one that can be read, and what is wrong with it."""
    if checkpoint.recipe is None:
        return None, []
    try:
        return parse_recipe(checkpoint.recipe), []
    except VerifyError as error:
        return None, [f"{escape(checkpoint.path)}: {error}"]


def _compared(shown: Shown, opened: Sequence[Checkpoint], *, values: bool, progress: Progress | None) -> Shown:
    from ..analysis.compare.compare import compare

    first, second = opened
    return replace(shown, difference=compare(first, second, values=values, renames=values, progress=progress))


def _title(paths: Sequence[str]) -> str:
    """Return what a page is called: the last part of each path; of an address all of it, without credentials."""
    return " and ".join(path if "://" in path else os.path.basename(os.path.abspath(path)) for path in paths)
