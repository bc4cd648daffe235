"""Applies a plan, from the first check to the finished output."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from ..errors import OutputError, PlanError
from ..formats.base.header import ExtraEntries
from ..formats.base.header_digest import seal
from ..formats.base.sharded_writer import RECIPE_FILE, folder_digest
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Receipt
from ..planning.recipe import Recipe
from ..planning.recipe_text import RecipeText
from ..storage.read.base import Progress
from ..storage.read.uri import scheme_of
from ..storage.signing import MODEL_SIGNATURE
from ..storage.write.folders import StagedFolder, staged_folder
from ..storage.write.locking import output_lock
from ..storage.write.output_checks import check_output, identities
from ..storage.write.staging import StagedFile, staged_file
from ..util.text import escape, listing
from .check_steps import check_step
from .copy_steps import check_storages, copied_steps
from .inputs import PlanInputs
from .output.companions import (
    StaleCompanions,
    all_checksums,
    as_written,
    companion_notes,
    copy_companions,
    recipe_as_written,
    stale_companions,
)
from .output.layout import OutputOptions, OutputShape, existing_checkpoint, is_folder, lay_out
from .output.signing import check_signable, signing
from .prefetch import keeping, prefetch
from .run import PlanRun, check_unchanged, lost_notes, negative_notes, unsound_notes

__all__ = ["carry_out"]


def carry_out(
    plan: Plan,
    inputs: PlanInputs,
    options: OutputOptions,
    recipe: Recipe,
    progress: Progress | None = None,
    beside: ExtraEntries | None = None,
) -> Receipt:
    """Apply a plan to its open inputs: write the output to the path in ``options``, and return a receipt.

    ``recipe`` is stored in the output; ``progress`` is called with (bytes done, bytes in all). ``beside`` are entries
    that the output gets in addition to tensors, in place of those that the plan copies. Raises PlanError if a
    step does not fit its source, or if two tensors that the destination ties have different values; FormatError if the
    bytes of a source do not match their checksum; SourceError and OutputError if a file cannot be read or written. A
    failure leaves no partial output.
    """
    began = time.perf_counter()
    for step in plan.steps:
        check_step(step)
    written = as_written(plan, options)
    recipe = recipe_as_written(recipe, written)
    text = RecipeText(recipe)
    shape = lay_out(
        written, options, () if is_folder(options) else text.checked({}), beside or _carried_entries(plan, inputs)
    )
    check_unchanged(inputs)
    path, taken = _output_path(shape, options), set(_identities(inputs, written, options))
    check_output(path, taken, force=options.force, folder=shape.folder)
    with ExitStack() as stack:
        stack.enter_context(output_lock(path, options.wait))
        check_output(
            path, taken, force=options.force, folder=shape.folder
        )  # only now does the lock keep other runs out
        former = stale_companions(options.path, written.target) if shape.folder else StaleCompanions()
        stack.enter_context(keeping(inputs))
        signed = stack.enter_context(signing(options, path, taken, folder=shape.folder))
        files, folder = stack.enter_context(_staged(path, shape, written, options, stale=former.stale))
        if folder is not None:
            copy_companions(written, folder)  # first: a file that changed since the plan ends the run at once
        run = PlanRun(written, inputs, shape, files, progress or (lambda done, total: None))
        run.fetched(prefetch(written, inputs, lambda done, total: run.progress(done, total + shape.size)))
        _check_equal(run)
        check_storages(run)
        with copied_steps(run):
            _compute_others(run)
        check_unchanged(inputs)
        _finish(run, text.checked(all_checksums(plan, run.checksums)), folder)
        signed.finish(files.values(), folder)
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
        rounded=run.rounded,
        notes=(
            *lost_notes(run.lost, written.steps),
            *unsound_notes(run.unsound),
            *negative_notes(run.negative),
            *companion_notes(written),
            *_left_out_notes(plan, written, options),
            *former.notes,
        ),
    )


def _left_out_notes(plan: Plan, written: Plan, options: OutputOptions) -> Iterator[str]:
    """Yield a note that names the companion files of a plan (as ``config.json``) that are not written, and says why."""
    left = [one.name for one in plan.target.companions if one not in written.target.companions]
    if left and plan.vocabularies and not is_folder(options):
        yield f"not written, since they are only written into a folder (-o NAME/): {listing(left, 12, where='')}"
    elif left and is_folder(options):
        yield f"not written, since an adapter is one file of safetensors: {listing(left, 12, where='')}"


def _carried_entries(plan: Plan, inputs: PlanInputs) -> ExtraEntries | None:
    """Return the entries other than tensors (such as ``epoch``) that a plan copies from its source; None without any.

    Raises PlanError if the source lacks one of them.
    """
    carried = plan.carried
    if not (carried.root or carried.entries):
        return None
    source = inputs.sources[0] if inputs.sources else None
    path = source.root_names if source is not None else None
    if source is None or path is None or source.root != carried.root:
        where = escape(carried.root) if carried.root else "the top level"
        raise PlanError(
            f"the plan copies the entries beside the state dict at {where}, but the source has no state dict there.",
            hint="Make a new plan.",
        )
    wanted = set(carried.entries)
    entries = [entry for entry in source.to_carry() if not entry.why and entry.name in wanted]
    lacking = wanted - {entry.name for entry in entries}
    if lacking:
        raise PlanError(
            f"the plan copies entries that {escape(source.path)} lacks: {listing(sorted(lacking))}.",
            hint="Make a new plan.",
        )
    depths = range(len(path) + 1)
    levels = tuple({e.key: e.value for e in entries if len(e.place) == depth} for depth in depths)
    _check_apart(plan, path, levels)
    return ExtraEntries(path, levels)


def _check_apart(plan: Plan, path: Sequence[str], levels: Sequence[Mapping[str, object]]) -> None:
    """Raise PlanError if an entry that the plan copies has a name that the output already uses.

    ``path`` has the names of the nested dicts that lead to the tensors. ``levels`` has the copied entries of each of
    these dicts, the outermost first.
    """
    taken = [step.key for step in plan.steps if step.key in levels[-1]]
    taken += [name for name, level in zip(path, levels, strict=False) if name in level]
    if taken:
        raise PlanError(
            f"the plan copies entries whose names the output already uses: {listing(taken)}.",
            hint="Make a new plan.",
            details=taken,
        )


def _check_equal(run: PlanRun) -> None:
    if run.plan.equal:
        from .compute.compute_steps import check_equal

        check_equal(run.plan, run.inputs.sources)


def _compute_others(run: PlanRun) -> None:
    """Compute and write all tensors that are not plain copies; if there are none, numpy is not imported."""
    if run.others:
        from .compute.compute_steps import compute_steps, draw_steps

        compute_steps(run)
        draw_steps(run)


def _output_path(shape: OutputShape, options: OutputOptions) -> str:
    """Return the path of an output, with links resolved if it is a folder."""
    return os.path.realpath(options.path) if shape.folder and not scheme_of(options.path) else options.path


@contextmanager
def _staged(
    path: str, shape: OutputShape, plan: Plan, options: OutputOptions, *, stale: Iterable[str]
) -> Iterator[tuple[Mapping[str, StagedFile], StagedFolder | None]]:
    """Yield the temporary files of an output by name ("" for a single file), and its temporary folder, if it is one.

    ``stale`` are files of an earlier output that will be removed. Raises OutputError if the folder holds a checkpoint
    and the options do not allow to replace it.
    """
    if not shape.folder:
        with staged_file(path, shape.size, force=options.force) as file:
            yield {"": file}, None
        return
    found = (*existing_checkpoint(path), *_existing_files(path, shape, plan), *stale)
    present = list(dict.fromkeys([*found, *_existing_signature(path, options)]))
    if present and not options.force:
        raise OutputError(
            f"{escape(options.path)} holds a checkpoint: {listing(present)}.",
            hint="Use --force to replace it.",
        )
    check_signable(path, options, present)
    with staged_folder(path, shape.size, stale=present) as folder:
        yield {part.name: folder.file(part.name, part.layout.size) for part in shape.parts}, folder


def _existing_files(path: str, shape: OutputShape, plan: Plan) -> Iterator[str]:
    """Yield the names of the output's files that already exist in the folder ``path``."""
    names = (*shape.names, *(one.name for one in plan.target.companions))
    return (name for name in names if os.path.lexists(os.path.join(path, name)))


def _existing_signature(path: str, options: OutputOptions) -> list[str]:
    """Return a list with the name of the folder's signature file if the new output replaces it; else an empty list.

    It is replaced if the folder has a recipe, so that ckptsurgeon wrote it, or if the new output is signed, too.
    """
    signed = options.key or os.path.lexists(os.path.join(path, RECIPE_FILE))
    return [MODEL_SIGNATURE] if signed and os.path.lexists(os.path.join(path, MODEL_SIGNATURE)) else []


def _identities(inputs: PlanInputs, plan: Plan, options: OutputOptions) -> Iterator[tuple[int, int]]:
    for source in inputs.sources:
        yield from identities(source.open_files().values())
    copied = (one.path for one in plan.target.companions if one.path)
    for path in (*(file.name for file in plan.target.files), *copied, *options.inputs, options.key):
        if path and os.path.exists(path):
            found = os.stat(path)
            yield found.st_dev, found.st_ino


def _finish(run: PlanRun, recipe: Sequence[str], folder: StagedFolder | None) -> None:
    """Write all that is not tensor data: headers, a folder's index, and the recipe, sealed with a SHA-256 digest."""
    for step in run.plan.steps:
        if step.key not in run.checksums:
            run.checksums[step.key] = run.checksums[step.tied_to]
    if folder is None:
        part = run.shape.parts[0]
        recipe = seal(recipe, _digest(part.layout.frame(run.checksums, recipe)))
        for offset, data in part.layout.frame(run.checksums, recipe):
            run.files[part.name].write(offset, data)
        return
    digests = {}
    for part in run.shape.parts:
        digest = hashlib.sha256()
        for offset, data in part.layout.frame(run.checksums, ()):
            digest.update(data)
            run.files[part.name].write(offset, data)
        digests[part.name] = digest.hexdigest()
    for name, index_of in run.shape.index.items():
        index = index_of(lambda name, offset, nbytes: run.files[name].read(offset, nbytes))
        folder.write(name, index)
        digests[name] = hashlib.sha256(index).hexdigest()
    digests[RECIPE_FILE] = hashlib.sha256("".join(recipe).encode()).hexdigest()
    folder.write(RECIPE_FILE, "".join(seal(recipe, folder_digest(digests))).encode())


def _digest(frame: Iterable[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for _, data in frame:
        digest.update(data)
    return digest.hexdigest()
