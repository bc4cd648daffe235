"""``view``: writes an HTML page about a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, cast

from ..analysis.compare.results import Difference
from ..analysis.inspection import inspection_of
from ..analysis.page.contents import Page, PageContents, contents_of
from ..analysis.page.html import page_html
from ..analysis.page.plain_merge import plain_merge
from ..analysis.page.runs import FILES, Run, is_run, read_run
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, path_of
from ..checkpoint.shard_notes import consumed_notes
from ..errors import ConfigError, VerifyError
from ..planning.plan.plan import Plan
from ..planning.recipe import Recipe, parse_recipe
from ..storage.read.base import File
from ..storage.read.uri import open_source
from ..util.notes import Note, with_prefix
from ..util.text import escape
from .check import check as run_checks
from .compare_changes import compare_changes
from .diff import folder_differences, folder_notes
from .inputs.argument_types import CheckpointLike, Path, Progress, checked
from .inputs.dequantising import weights_of
from .inputs.sampled_scales import odd_scale_notes_on
from .inspect import model_summary
from .lora.adapter_files import described_adapter

__all__ = ["view"]

NAMED = 4
"""The title of a page names at most this many checkpoints, with the base."""


@checked
def view(
    path: CheckpointLike | Plan,
    other: CheckpointLike | None = None,
    *more: CheckpointLike,
    stats: bool = False,
    values: bool = True,
    check: bool = False,
    root: str | None = None,
    output: Path | None = None,
    force: bool = False,
    wait: float | None = None,
    progress: Progress | None = None,
) -> Page:
    """Return an HTML page about a checkpoint, a training run, a merge, or the differences of several checkpoints.

    The page is one self-contained HTML file; if ``output`` is given, the page is written there. If ckptsurgeon wrote
    the checkpoint, the page shows its recipe: how each tensor was made. ``stats`` reads all values for statistics and
    histograms. The values of two checkpoints are compared, including tensors that have another name; if ``values`` is
    False, only their headers are compared. With three or more checkpoints, the first is the base. The page then shows
    how each of the others has changed from the base, and whether their changes agree. With ``check``, the page shows
    what the verb ``check`` finds.

    For a plan of ``merge``, the page is made before the merge. It shows the agreement of the models' changes, the
    layers in which the changes oppose each other, and the share of the changes that each method would keep. The changes
    are computed from all values, and the shares from samples, within bounded memory. The field ``merge`` of the result
    has these figures.

    ``root`` is the dotted path of the state dict in all checkpoints; ``wait`` is as in ``apply``.

    Raises the errors of ``open_checkpoint``, ConfigError for arguments that contradict each other, and OutputError if
    the output exists (without ``force``), is an input, or cannot be written.
    """
    if isinstance(path, Plan):
        _check_plan_arguments(other, more, stats=stats, values=values, check=check, root=root)
        return _merge_page(path, output=output, force=force, wait=wait, progress=progress)
    sources = [path] if other is None else [path, other, *more]
    _check_arguments(sources, more, values=values, check=check)
    target = None if output is None else os.fspath(output)
    if target is not None:
        _check(target, force=force)
    run = _run([path_of(one) for one in sources if isinstance(one, (str, os.PathLike))], len(sources), target)
    with ExitStack() as stack:
        if run is not None:
            _check_model(run, "--check" if check else "--stats" if stats else "")
            sources = [os.path.join(run.path, run.model)] if run.model else []
        opened = [stack.enter_context(open_checkpoint(one, root)) for one in sources]
        shown, notes = _inspected(opened[: 2 if len(opened) == 2 else 1], run, stats=stats)
        if len(opened) == 2:
            found = _compared(opened, values=values, progress=progress)
            shown, more_notes = replace(shown, difference=found), (*found.notes, *folder_differences(*opened))
        elif len(opened) > 2:
            changes = compare_changes(sources[0], sources[1:], root=root, progress=progress)
            shown, more_notes = replace(shown, changes=changes), changes.notes
        else:
            more_notes = ()
        if len(opened) < 3:  # ``compare_changes`` returns these notes
            more_notes += tuple(note for one in opened if one.codes for note in odd_scale_notes_on(one))
        if check and sources:
            shown = replace(shown, report=run_checks(cast("Path", sources[0]), root=root, progress=progress))
        data = contents_of(shown)
        title = _title([one.path for one in opened] if run is None else [run.path])
        plays = run is not None and run.clips is not None and run.clips.has_sounds
        notes = tuple(dict.fromkeys((*notes, *more_notes)))
        page = Page(page_html(data, title, plays=plays), len(data["tensors"]["rest"]), target, notes)
        if target is not None:
            from ..storage.write.staged_file import write_text

            inputs = [file for one in opened for file in one.open_files().values()]
            inputs += [stack.enter_context(closing(file)) for file in _files(run)]
            write_text(target, page.html, inputs=inputs, force=force, wait=wait)
    return page


def _check_arguments(
    sources: Sequence[CheckpointLike], more: Sequence[CheckpointLike], *, values: bool, check: bool
) -> None:
    if more and len(sources) == 1:
        raise ConfigError("the second checkpoint is missing.", hint="Name each checkpoint, the base first.")
    if len(sources) != 2 and not values:
        raise ConfigError(
            "--no-values is only for a comparison of two checkpoints.",
            hint="Leave --no-values out, or name two checkpoints.",
        )
    if check and (len(sources) > 1 or not isinstance(sources[0], (str, os.PathLike))):
        raise ConfigError(
            "--check is only for one checkpoint in a file or folder.", hint="Leave --check out, or name one checkpoint."
        )


def _check_plan_arguments(
    other: CheckpointLike | None,
    more: Sequence[CheckpointLike],
    *,
    stats: bool,
    values: bool,
    check: bool,
    root: str | None,
) -> None:
    given = {
        "has no second checkpoint": ("other", other is not None),
        "has no further checkpoints": ("them", bool(more)),
        "has no statistics": ("stats", stats),
        "compares all values": ("values", not values),
        "has no checks": ("check", check),
        "takes the dotted path of the state dict from the plan": ("root", root is not None),
    }
    for says, (name, is_given) in given.items():
        if is_given:
            raise ConfigError(f"a page about a plan {says}.", hint=f"Leave {name} out.")


def _merge_page(plan: Plan, *, output: Path | None, force: bool, wait: float | None, progress: Progress | None) -> Page:
    """Return the page about a merge, and write it if ``output`` is given."""
    from .merge.survey import survey_merge

    target = None if output is None else os.fspath(output)
    if target is not None:
        _check(target, force=force)
    surveyed = survey_merge(plan, progress)
    base, survey = surveyed.stored, surveyed.survey
    shown, notes = _inspected([base], None, stats=False)
    data = contents_of(replace(shown, recipe=None, changes=survey.changes, merge=survey))
    notes = tuple(dict.fromkeys((*notes, *plan.notes, *survey.changes.notes)))
    title = _title([base.path, *survey.changes.models])
    made = page_html(data, title, plain=plain_merge(survey))
    page = Page(made, len(data["tensors"]["rest"]), target, notes, survey)
    if target is not None:
        _write(page, target, surveyed.sources, force=force, wait=wait)
    return page


def _write(page: Page, target: str, opened: Sequence[Checkpoint], *, force: bool, wait: float | None) -> None:
    from ..storage.write.staged_file import write_text

    inputs = [file for one in opened for file in one.open_files().values()]
    write_text(target, page.html, inputs=inputs, force=force, wait=wait)


def _check(output: str, *, force: bool) -> None:
    """Raise OutputError if the output cannot be written; called before any values are read."""
    from ..storage.write.output_paths import check_output

    check_output(output, (), force=force, folder=False)


def _run(names: Sequence[str], of: int, page: str | None) -> Run | None:
    """Return the training run if one of the paths in ``names`` is the folder of a run; else None.

    ``of`` is the number of inputs of the page, and ``page`` the path of the page. Raises ConfigError for a training run
    if there is more than one input.
    """
    folders = [name for name in names if is_run(name)]
    if not folders:
        return None
    if of > 1:
        raise ConfigError(
            f"{escape(folders[0])} is the folder of a training run, which cannot be compared.",
            hint="To compare models, name their checkpoints, as in runs/ru/best.safetensors.",
        )
    return read_run(folders[0], page)


def _check_model(run: Run, option: str) -> None:
    """Raise ConfigError if ``option``, which reads a checkpoint, is given for a run that has saved none."""
    if option and run.model is None:
        raise ConfigError(
            f"{escape(run.path)} is a training run that has saved no model yet, so {option} has no effect.",
            hint=f"Leave {option} out.",
        )


def _files(run: Run | None) -> Iterator[File]:
    """Yield the files of a training run from which the page is made."""
    paths = [] if run is None else [os.path.join(run.path, name) for name in FILES]
    for path in paths:
        if os.path.isfile(path):
            yield cast("File", open_source(path))


def _inspected(opened: Sequence[Checkpoint], run: Run | None, *, stats: bool) -> tuple[PageContents, tuple[str, ...]]:
    """Return the contents of a page about one or two checkpoints, and notes; reads values only if ``stats`` is set."""
    weights = [weights_of(one) for one in opened]
    described = [
        replace(inspection_of(one, stats=stats, weights=give), **_described(one))
        for one, give in zip(opened, weights, strict=True)
    ]
    found = [
        replace(one, notes=(*one.notes, *_with_path(checkpoint, _on_files(checkpoint), len(opened))))
        for checkpoint, one in zip(opened, described, strict=True)
    ]
    notes: list[str] = [note for one in found for note in one.notes]
    histograms: dict[str, tuple[int, ...]] = {}
    outermost: dict[str, tuple[int, int] | None] = {}
    if stats:
        from ..analysis.extreme_codes import outermost_codes
        from ..analysis.stats import histogram_of

        for checkpoint, one, give in zip(opened, found, weights, strict=True):
            for key, figures in (one.stats or {}).items():
                if figures is not None:
                    histograms[key] = histogram_of(checkpoint, checkpoint[key], figures)
            for coded in one.codes.tensors:
                weight = give(coded.codes) if coded.name in one.decoded else None
                if weight is not None:
                    histograms[coded.codes] = histogram_of(checkpoint, weight.info, one.decoded[coded.name])
                    outermost[coded.codes] = outermost_codes(checkpoint, weight.info)
    recipe = None
    if len(opened) == 1:
        recipe, faults = _recipe(opened[0])
        notes += faults
    first, second = [*found, None, None][:2]
    shown = PageContents(first, second, recipe=recipe, run=run, histograms=histograms, outermost=outermost)
    return shown, tuple(notes)


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields ``model`` and ``adapter`` of an inspection, from the checkpoint and the files in its folder."""
    from .model_folder.folder import model_folder

    folder = model_folder(checkpoint) if checkpoint.folder is not None else None
    return {"model": model_summary(checkpoint, folder), "adapter": described_adapter(checkpoint)}


def _on_files(checkpoint: Checkpoint) -> list[Note]:
    """Return the notes of ``inspect`` on the files of a checkpoint, and on other files in its folder."""
    return [*folder_notes(checkpoint), *consumed_notes(checkpoint.open_files().values())]


def _with_path(checkpoint: Checkpoint, notes: Sequence[Note], checkpoints: int) -> list[Note]:
    """Return the notes on a checkpoint, each preceded by its path if the page shows several ``checkpoints``."""
    return [with_prefix(f"{escape(checkpoint.path)}: ", note) if checkpoints > 1 else note for note in notes]


def _recipe(checkpoint: Checkpoint) -> tuple[Recipe | None, list[str]]:
    """Return the recipe in a checkpoint, and notes; the recipe is None if there is none, or it cannot be read."""
    if checkpoint.recipe is None:
        return None, []
    try:
        return parse_recipe(checkpoint.recipe), []
    except VerifyError as error:
        return None, [f"{escape(checkpoint.path)}: {error.said}"]


def _compared(opened: Sequence[Checkpoint], *, values: bool, progress: Progress | None) -> Difference:
    from ..analysis.compare.compare import compare

    weights = [weights_of(one) for one in opened]
    return compare(*opened, values=values, renames=values, weights=weights, progress=progress)


def _title(paths: Sequence[str]) -> str:
    """Return the title of the page: the file or folder name of each path, or the whole URL (without credentials).

    If there are many models, only the first are named.
    """
    names = [path if "://" in path else os.path.basename(os.path.abspath(path)) for path in paths]
    if len(names) > 1 + NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return " → ".join([names[0], ", ".join(names[1:])]) if names[1:] else names[0]
