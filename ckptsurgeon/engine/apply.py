"""Carries a plan out, from the first check to the output in its place."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ..errors import OutputError, PlanError
from ..formats import RECIPE_FILE, Beside, folder_digest, seal
from ..plan import Plan, Receipt
from ..recipe import Recipe, recipe_text
from ..sources import scheme_of
from ..text import escape, listing
from .announcing import announce, keeping
from .check_steps import check_step
from .companions import all_checksums, as_written, copy_companions, recipe_as_written, told_companions
from .copy_steps import check_storages, copied_steps
from .folders import StagedFolder, staged_folder
from .former import Former, former_companions
from .layout import OutputOptions, OutputShape, existing_checkpoint, lay_out
from .places import check_output, identities
from .run import Inputs, Progress, Run, check_unchanged, is_copy, overflow_notes
from .staging import StagedFile, staged_file

__all__ = ["carry_out"]


def carry_out(
    plan: Plan, inputs: Inputs, options: OutputOptions, recipe: Recipe, progress: Progress | None = None
) -> Receipt:
    """Carry a plan out and return what was written.

    Raises PlanError where a step does not fit its source or tied values differ, FormatError where a source fails
    its checksum, SourceError and OutputError where a file cannot be read or written. Nothing is left half done.
    """
    began = time.perf_counter()
    for step in plan.steps:
        check_step(step)
    written = as_written(plan, options)
    recipe = recipe_as_written(recipe, written)
    shape = lay_out(written, options, recipe_text(recipe), _beside(plan, inputs))
    check_unchanged(inputs)
    former = former_companions(options.path, written.target.companions) if shape.folder else Former()
    with keeping(inputs), _staged(shape, inputs, written, options, former=former) as (files, folder):
        run = Run(written, inputs, shape, files, progress or (lambda done, total: None))
        run.fetched(announce(written, inputs, lambda done, total: run.progress(done, total + shape.size)))
        _check_equal(run)
        check_storages(run)
        with copied_steps(run):
            _compute_others(run)
        check_unchanged(inputs)
        _finish(run, recipe.with_checksums(all_checksums(plan, run.checksums)), folder)
        nbytes = folder.nbytes if folder is not None else shape.size
    return Receipt(
        output=options.path,
        counts=plan.counts,
        unexpected=tuple(key for _, key in plan.unexpected),
        nbytes_read=run.nbytes_read,
        nbytes_written=nbytes,
        elapsed_s=time.perf_counter() - began,
        plan_sha256=plan.sha256(),
        fits=run.fits,
        notes=(*overflow_notes(run.overflowed), *told_companions(written), *_left_out(plan, written), *former.notes),
    )


def _left_out(plan: Plan, written: Plan) -> Iterator[str]:
    """Yield which token list does not go with a single file."""
    if plan.vocabularies and plan.target.companions and not written.target.companions:
        names = listing([one.name for one in plan.target.companions], 12, where="")
        yield f"not written, since they lie beside the weights in a folder (-o NAME/): {names}"


def _beside(plan: Plan, inputs: Inputs) -> Beside | None:
    """Return what a plan carries along beside the tensors; raises PlanError where the source has it no more."""
    carried = plan.carried
    if not (carried.root or carried.entries):
        return None
    source = inputs.sources[0] if inputs.sources else None
    path = source.root_names if source is not None else None
    if source is None or path is None or source.root != carried.root:
        where = f"root {escape(carried.root)}" if carried.root else "the top level"
        raise PlanError(
            f"the plan carries what lies beside {where}, where its source has no state dict.", hint="Plan again."
        )
    wanted = set(carried.entries)
    entries = [entry for entry in source.to_carry() if not entry.why and entry.name in wanted]
    lacking = wanted - {entry.name for entry in entries}
    if lacking:
        raise PlanError(
            f"{escape(source.path)} has no plain entry {listing(sorted(lacking))} to carry.", hint="Plan again."
        )
    depths = range(len(path) + 1)
    levels = tuple({e.key: e.value for e in entries if len(e.place) == depth} for depth in depths)
    _check_apart(plan, path, levels)
    return Beside(path, levels)


def _check_apart(plan: Plan, path: Sequence[str], levels: Sequence[Mapping[str, object]]) -> None:
    """Raise PlanError where an entry has the name of a tensor, or of a dict on the way to them: it would replace it."""
    taken = [step.key for step in plan.steps if step.key in levels[-1]]
    taken += [name for name, level in zip(path, levels, strict=False) if name in level]
    if taken:
        raise PlanError(
            f"the plan carries {listing(taken)}, which the output has already.", hint="Plan again.", details=taken
        )


def _check_equal(run: Run) -> None:
    if run.plan.equal:
        from .compute_steps import check_equal

        check_equal(run.plan, run.inputs.sources)


def _compute_others(run: Run) -> None:
    """Do what is not copying; where there is nothing of it, numpy stays unimported."""
    if any(step.source is None or not is_copy(step, run.info(step)) for step in run.plan.steps):
        from .compute_steps import compute_steps, draw_steps

        compute_steps(run)
        draw_steps(run)


@contextmanager
def _staged(
    shape: OutputShape, inputs: Inputs, plan: Plan, options: OutputOptions, *, former: Former
) -> Iterator[tuple[Mapping[str, StagedFile], StagedFolder | None]]:
    """Give the temp files of an output by their names."""
    path = os.path.realpath(options.path) if shape.folder and not scheme_of(options.path) else options.path
    taken = set(_identities(inputs, plan, options))
    check_output(path, taken, force=options.force, folder=shape.folder)
    if not shape.folder:
        with staged_file(path, shape.size, force=options.force) as file:
            yield {"": file}, None
        return
    present = [*existing_checkpoint(path), *_existing_companions(path, plan), *former.stale]
    if present and not options.force:
        raise OutputError(
            f"{escape(options.path)} holds a checkpoint: {listing(present)}.",
            hint="Use --force to replace it.",
        )
    with staged_folder(path, shape.size, stale=present) as folder:
        yield {part.name: folder.file(part.name, part.layout.size) for part in shape.parts}, folder


def _existing_companions(path: str, plan: Plan) -> Iterator[str]:
    names = [one.name for one in plan.target.companions] + ([plan.target.weights] if plan.target.weights else [])
    return (name for name in names if os.path.lexists(os.path.join(path, name)))


def _identities(inputs: Inputs, plan: Plan, options: OutputOptions) -> Iterator[tuple[int, int]]:
    for source in inputs.sources:
        yield from identities(source.open_files().values())
    for path in (*(file.name for file in plan.target.files), *options.inputs):
        if os.path.exists(path):
            found = os.stat(path)
            yield found.st_dev, found.st_ino


def _finish(run: Run, recipe: Recipe, folder: StagedFolder | None) -> None:
    """Write everything that is no tensor, sealed."""
    for step in run.plan.steps:
        if step.key not in run.checksums:
            run.checksums[step.key] = run.checksums[step.tied_to]
    text = recipe_text(recipe)
    if folder is None:
        part = run.shape.parts[0]
        text = seal(text, _digest(part.layout.frame(run.checksums, text)))
        for offset, data in part.layout.frame(run.checksums, text):
            run.files[part.name].write(offset, data)
        return
    digests = {}
    for part in run.shape.parts:
        frame = part.layout.frame(run.checksums, "")
        digests[part.name] = _digest(frame)
        for offset, data in frame:
            run.files[part.name].write(offset, data)
    copy_companions(run.plan, folder)
    name, index = run.shape.index
    if name:
        folder.write(name, index)
        digests[name] = hashlib.sha256(index).hexdigest()
    digests[RECIPE_FILE] = hashlib.sha256(text.encode()).hexdigest()
    folder.write(RECIPE_FILE, seal(text, folder_digest(digests)).encode())


def _digest(frame: Sequence[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for _, data in frame:
        digest.update(data)
    return digest.hexdigest()
