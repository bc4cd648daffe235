"""Applies a plan, from the first check to the finished output."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ..checkpoint.zero_notes import seen_zero_notes
from ..formats.base.header import ExtraEntries, seal
from ..formats.base.sharded_writer import RECIPE_FILE, folder_digest
from ..planning.plan.plan import CarriedEntries, Plan
from ..planning.plan.receipt import Receipt
from ..planning.recipe import Recipe
from ..planning.recipe_text import RecipeText
from ..storage.read.base import Progress
from ..storage.read.uri import scheme_of, shown
from ..storage.write.output_paths import check_output, identities, output_lock
from ..tensors.dtypes import TORCH_QUANTISED
from ..util.text import listing
from .check_steps import check_step
from .checksums import recipe_notes
from .compute.growth import grown_notes
from .consuming import source_consumer
from .inputs import PlanInputs
from .one_output_part import (
    PartRun,
    adapter_notes,
    check_unchanged,
    keeping,
    lost_notes,
    negative_notes,
    unsound_copy_notes,
    unsound_notes,
)
from .output.carried_entries import carried_entries
from .output.companion_files import (
    StaleCompanions,
    copy_companions,
    implied_notes,
    stale_companions,
)
from .output.diffusers_pipeline import check_subfolder, component_notes
from .output.layout import OutputFile, OutputOptions, OutputShape, as_written, is_folder, lay_out
from .output.quantisers import quantisers_of
from .output.signing import earlier_signature_notes, earlier_signatures, signing
from .output_parts import ByteCounter, plan_of_parts, steps_of_parts, write_parts
from .part_receipt import PartReceipt
from .prefetch import prefetch
from .processes import Helpers
from .same_run import identity_digest
from .staged_output import StagedOutput, staged_output

if TYPE_CHECKING:
    from ..tensors.odd_scales.notes import Found

__all__ = ["carry_out"]

T = TypeVar("T")


def carry_out(
    plan: Plan,
    inputs: PlanInputs,
    options: OutputOptions,
    recipe: Recipe,
    progress: Progress | None = None,
    beside: ExtraEntries | None = None,
    helpers: Helpers | None = None,
) -> Receipt:
    """Apply a plan to its open inputs: write the output to the path or address in ``options``; return a receipt.

    ``recipe`` is stored in the output; ``progress`` is called with (bytes done, total bytes). ``beside`` are the
    entries of the output that are not tensors, such as ``epoch``; None for the entries that the plan copies from its
    source. ``helpers`` are other processes that write some files of the output. Raises PlanError if a step does not fit
    its source, or if two tensors that the destination ties have different values. Raises FormatError if the bytes of a
    source do not match their checksum, SourceError or OutputError if a file cannot be read or written. After a failure
    there is no new output, unless it failed afterwards, as it signed the output or deleted consumed sources. If the
    output has several files and the same command may succeed later, the finished files are kept in a temporary folder
    for the next run.
    """
    began = time.perf_counter()
    for step in plan.steps:
        check_step(step)
    written = as_written(plan, options)
    text = RecipeText(_recipe_as_written(recipe, written))
    if beside is None and plan.carried != CarriedEntries():
        beside = carried_entries(plan, inputs.sources)
    has_quantisers = any(step.source_dtype in TORCH_QUANTISED for step in written.steps)
    quantisers = quantisers_of(written, inputs.sources) if has_quantisers else {}
    shape = lay_out(written, options, () if is_folder(options) else text.checked({}), beside, quantisers)
    check_unchanged(inputs.sources)
    path, taken = _output_path(shape, options), set(_identities(inputs, written, options))
    with ExitStack() as stack:
        inside = [*dict.fromkeys(one.subfolder for one in written.target.companions if one.subfolder)]
        stack.enter_context(_claimed(path, shape, options, taken, inside))
        consumer = source_consumer(written, inputs, options, shape) if options.consume else None
        former = stale_companions(options.path, written.target) if shape.folder else StaleCompanions()
        is_replaced = os.path.lexists(options.path)
        signatures = (
            earlier_signatures(options.path, folder=shape.folder, signed=bool(options.key)) if is_replaced else []
        )
        stack.enter_context(keeping(inputs.sources))
        signer = None
        if options.key:
            signer = stack.enter_context(signing(options, path, taken, folder=shape.folder or bool(scheme_of(path))))
        staged = stack.enter_context(
            _opening(path)(
                path, shape, written, options, plan=plan, inputs=inputs, stale=former.stale, helpers=helpers,
                consumer=consumer,
            )
        )  # fmt: skip
        if staged.folder is not None:
            copy_companions(written, staged.folder)  # first, to fail at once if a file has changed since the plan
        parts = staged.begin_parts(lambda: identity_digest(plan, inputs, options, shape))
        receipts = _write_parts(written, inputs, staged, parts, progress)
        check_unchanged(inputs.sources)
        sums = _merged(one.checksums for one in receipts)
        _finish(receipts, shape, staged, text.checked(_all_checksums(plan, sums)))
        if signer is not None:
            signer.finish(staged.files.values(), staged.folder)
        nbytes = staged.folder.nbytes if staged.folder is not None else shape.size
    kept = sum(part.layout.size for part in shape.parts if part.name in staged.kept)
    consumed = consumer.finish() if consumer is not None else ()
    return Receipt(
        output=shown(options.path),
        counts=plan.counts,
        unexpected=tuple(key for _, key in plan.unexpected),
        nbytes_read=sum(one.nbytes_read for one in receipts if one.name not in staged.kept),
        nbytes_written=nbytes - kept,
        nbytes_kept=kept,
        elapsed_s=time.perf_counter() - began,
        plan_sha256=plan.sha256(),
        fits=tuple(fit for one in receipts for fit in one.fits),
        rounded=tuple(rounded for one in receipts for rounded in one.rounded),
        beside=tuple(one.name for one in written.target.companions),
        notes=(
            *staged.notes,
            *_value_notes(receipts, plan, written, inputs),
            *(recipe_notes(written, inputs.sources, sums) if any(one.recipe for one in inputs.sources) else ()),
            *(implied_notes(written) if written.target.implied else ()),
            *_left_out_notes(plan, written, options),
            *_large_tensor_notes(shape, options),
            *(component_notes(path, shape.subfolders, written.steps) if shape.subfolders else ()),
            *(former.notes if shape.folder else ()),
            *(earlier_signature_notes(signatures) if signatures else ()),
            *consumed,
        ),
    )


@contextmanager
def _claimed(
    path: str, shape: OutputShape, options: OutputOptions, taken: set[tuple[int, int]], folders: Sequence[str]
) -> Iterator[None]:
    """Check that the output may be written to ``path``, and lock it during the ``with`` block.

    ``taken`` are the files that the output must not overwrite, by device and inode. ``folders`` are the subfolders of
    its companions.
    """
    if scheme_of(path):
        from ..storage.upload.scratch import scratch_path

        with output_lock(scratch_path(path), options.wait, shown=shown(path)):
            yield
        return
    inside = (*shape.subfolders, *folders)
    check_output(path, taken, force=options.force, folder=shape.folder, inside=inside)
    with output_lock(path, options.wait, shown=shown(path)):
        # check again, now that the lock excludes other runs
        check_output(path, taken, force=options.force, folder=shape.folder, inside=inside)
        for name in folders:
            check_subfolder(path, name, "a folder")
        yield


def _opening(path: str) -> Callable[..., AbstractContextManager[StagedOutput]]:
    """Return the function that opens the temporary files of an output; if ``path`` is a URL, it also uploads them."""
    if not scheme_of(path):
        return staged_output
    from .uploaded_output import uploaded_output

    return uploaded_output


def _value_notes(receipts: Sequence[PartReceipt], plan: Plan, written: Plan, inputs: PlanInputs) -> Iterator[str]:
    """Yield the notes on values that were read or computed, from the receipts of all files of the output."""
    yield from lost_notes(_merged(one.lost for one in receipts), written.steps)
    yield from unsound_notes(_merged(one.unsound for one in receipts))
    if unsound := {key for one in receipts for key in one.unsound_copies}:
        copies = {step.key: step.source_key or step.key for step in written.steps if step.key in unsound}
        yield from unsound_copy_notes(copies, plan.notes)
    if grown := _merged(one.grown for one in receipts):
        yield from grown_notes(grown, written.steps)
    yield from negative_notes(_merged(one.negative for one in receipts))
    yield from adapter_notes(one.adapters for one in receipts)
    yield from _odd_scale_notes([one.odd_scales for one in receipts if one.odd_scales])
    if zeros := [one.zeros for one in receipts if one.zeros]:
        yield from seen_zero_notes(inputs.sources, zeros, plan.notes)


def _odd_scale_notes(found: Sequence[Found]) -> Iterable[str]:
    if not found:
        return ()
    from ..tensors.odd_scales.notes import odd_scale_notes

    return odd_scale_notes(found)


def _merged(dicts: Iterable[Mapping[str, T]]) -> dict[str, T]:
    return {key: value for one in dicts for key, value in one.items()}


def _write_parts(
    plan: Plan, inputs: PlanInputs, staged: StagedOutput, parts: Sequence[OutputFile], progress: Progress | None
) -> list[PartReceipt]:
    """Write the files ``parts``, and wait for the files of other processes.

    Return the receipts of all files, in order.
    """
    shape = staged.shape
    steps = steps_of_parts(plan, shape)
    kept = sum(one.layout.size for one in shape.parts if one.name in staged.kept)
    counter = ByteCounter(progress, shape.size + staged.sends, kept, watch=staged.take_in)
    staged.advance = counter.advance
    unwritten = plan if len(parts) == len(shape.parts) else plan_of_parts(plan, steps, parts)
    if any(source.is_remote for source in inputs.sources):
        counter.fetched(prefetch(unwritten, inputs, counter.fetching))
    _check_equal(plan, inputs)
    runs = [PartRun(plan, steps[part.name], inputs, part, staged.files[part.name], counter.advance) for part in parts]
    write_parts(runs, staged.finished)
    staged.wait_for_others()
    return [staged.receipts[part.name] for part in shape.parts]


def _left_out_notes(plan: Plan, written: Plan, options: OutputOptions) -> Iterator[str]:
    """Yield a note that lists the companion files of a plan (such as config.json) that are not written, and why."""
    left = [one.name for one in plan.target.companions if one not in written.target.companions]
    if left and plan.vocabularies and not is_folder(options):
        yield (
            "these files are not written, because the output is a file and not a folder (-o NAME/): "
            f"{listing(left, 12, where='')}"
        )
    elif left and is_folder(options):
        why = "PEFT reads an adapter only from a folder with one safetensors file"
        yield f"these files are not written, because {why}: {listing(left, 12, where='')}"


def _large_tensor_notes(shape: OutputShape, options: OutputOptions) -> Iterable[str]:
    """Yield a note if tensors are larger than the size of shards that the user gave."""
    if not options.max_shard_size:
        return ()
    from .output.shards import large_tensor_notes

    return large_tensor_notes((part.layout.slots for part in shape.parts), options.max_shard_size, options.spelling)


def _check_equal(plan: Plan, inputs: PlanInputs) -> None:
    if plan.equal:
        from .compute.compute_steps import check_equal

        check_equal(plan, inputs.sources)


def _output_path(shape: OutputShape, options: OutputOptions) -> str:
    """Return the path of an output; if the output is a local folder, links in its path are resolved."""
    return os.path.realpath(options.path) if shape.folder and not scheme_of(options.path) else options.path


def _identities(inputs: PlanInputs, plan: Plan, options: OutputOptions) -> Iterator[tuple[int, int]]:
    for source in inputs.sources:
        yield from identities(source.open_files().values())
    copied = (one.path for one in plan.target.companions if one.path)
    for path in (*(file.name for file in plan.target.files), *copied, *options.inputs, options.key):
        if path and os.path.exists(path):
            found = os.stat(path)
            yield found.st_dev, found.st_ino


def _finish(receipts: Sequence[PartReceipt], shape: OutputShape, staged: StagedOutput, recipe: Sequence[str]) -> None:
    """Write the header of a single file, or the index of a folder; also write the recipe.

    ``receipts`` are the receipts of all files with tensors. The recipe contains a SHA-256, which later shows whether
    the recipe or the output was changed.
    """
    if staged.folder is None:
        (part,), (receipt,) = shape.parts, receipts
        recipe = seal(recipe, _digest(part.layout.frame(receipt.checksums, recipe)))
        for offset, data in part.layout.frame(receipt.checksums, recipe):
            staged.files[part.name].write(offset, data)
        return
    digests = staged.digests
    for name, index_of in shape.index.items():
        index = index_of(lambda name, offset, nbytes: staged.files[name].read(offset, nbytes))
        staged.folder.write(name, index)
        digests[name] = hashlib.sha256(index).hexdigest()
    digests[RECIPE_FILE] = hashlib.sha256("".join(recipe).encode()).hexdigest()
    staged.folder.write(RECIPE_FILE, "".join(seal(recipe, folder_digest(digests))).encode())


def _recipe_as_written(recipe: Recipe, plan: Plan) -> Recipe:
    """Return the recipe with the companion files and the metadata of ``plan``.

    The output may lack keys that loaders tie to other keys; in the returned recipe, the tensors with such keys are
    marked as ``implied``.
    """
    tensors = recipe.tensors
    if plan.target.implied:
        written = {step.key for step in plan.steps}
        tensors = {key: made._replace(implied=key not in written) for key, made in tensors.items()}
    target = replace(recipe.target, companions=plan.target.companions)
    return replace(recipe, tensors=tensors, target=target, metadata=plan.metadata)


def _all_checksums(plan: Plan, checksums: Mapping[str, int]) -> Mapping[str, int]:
    """Return {key: CRC-32} for every key of a plan; ``checksums`` has the CRC-32 only for the keys that are written.

    A tied key that is not written gets the checksum of the key to which it is tied.
    """
    if not any(step.tied_to for step in plan.steps):
        return checksums
    found = {step.tied_to or step.key: checksums[step.key] for step in plan.steps if step.key in checksums}
    return {step.key: found[step.tied_to or step.key] for step in plan.steps}


def _digest(frame: Iterable[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for _, data in frame:
        digest.update(data)
    return digest.hexdigest()
