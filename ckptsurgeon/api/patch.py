"""``make_patch``, ``apply_patch`` and ``read_patch``: a patch is a small file with the changes of fine-tuning."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..analysis.patch import Patch, described
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint
from ..checkpoint.zero_notes import seen_zero_notes
from ..errors import CheckpointError, ConfigError, OutputError
from ..formats.base.format_table import is_weights
from ..planning.plan.files import PlanTarget
from ..storage.signing import MODEL_SIGNATURE
from ..storage.write.folders import staged_folder
from ..storage.write.output_paths import check_output, check_space, identities, output_lock
from ..storage.write.staged_file import StagedFile, staged_file
from ..util.text import count, escape, listing
from .inputs.argument_types import Path, Patterns, Progress, checked
from .inputs.patch_patterns import approximated

if TYPE_CHECKING:
    from ..engine.patch.index import PatchIndex

__all__ = ["apply_patch", "make_patch", "read_patch"]


@checked
def make_patch(
    old: Path,
    new: Path,
    output: Path,
    *,
    level: int = 1,
    signs: Patterns = (),
    low_rank: Patterns = (),
    rank: int | None = None,
    exact: Patterns = (),
    force: bool = False,
    wait: float | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Write a patch to the file ``output``: it turns ``old`` into ``new``, bit for bit unless changes are approximated.

    Both checkpoints are files or folders; the other files of a folder (configuration, tokeniser) are in the patch too.
    Unchanged tensors are not stored. For each other tensor, the XOR with the old tensor of the same name and dtype is
    stored. The bytes of the XOR are grouped by significance and compressed with Zstandard (``level`` 1 to 19). ``wait``
    is as in ``apply``.

    The patterns ``signs`` select tensors of the new checkpoint whose changes are stored approximately: the sign of each
    change, and the mean size of the changes in each block of 4 MiB. (BitDelta, https://arxiv.org/abs/2402.10193, has
    one size for each matrix instead, and trains it.) The patch then makes files that differ from ``new`` in these
    tensors. Only matrices of bfloat16, float16 or float32 with the dtype and shape of the old matrix are approximated.
    A block is stored exactly if its signs would take more than half of the space of the exact changes. ``exact``
    selects tensors that are stored exactly although ``signs`` or ``low_rank`` selects them. The codes and scales of
    quantised weights are always stored exactly; a note says how many are selected.

    The patterns ``low_rank`` select matrices whose changes are stored as the product of two factors of rank ``rank``
    (16 if None), in float32: the best factors, which ``lora_extract`` finds, too. A convolution is a matrix of its
    output channels. ``apply_patch`` adds the product to the old matrix, and rounds the sum once to its dtype. A note
    says which matrices are stored exactly, and why. Possible reasons are changes that are not finite, a rank that is
    not below both sides of the matrix, no old matrix of the same dtype and shape, and factors that take more than half
    of the space of the exact changes. ``Patch.low_rank`` has the error of each matrix.

    Raises the errors of ``open_checkpoint``; PatternError for a pattern that matches nothing; PlanError if ``signs`` or
    ``low_rank`` selects only parts of quantised weights; and OutputError if the patch cannot be written. Raises
    ConfigError if both ``signs`` and ``low_rank`` select a tensor, for a rank below 1, and if the package zstandard is
    missing.
    """
    from ..engine.patch.make import make_patch as make
    from ..engine.patch.new_files import folders_in
    from ..engine.patch.patch_file import PatchWriter

    began = time.perf_counter()
    if not 1 <= level <= 19:
        raise ConfigError(f"--level {level} is not a valid level of Zstandard.", hint="Give a number from 1 to 19.")
    path = os.fspath(output)
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(old))
        after = stack.enter_context(open_checkpoint(new))
        inputs = [*_files_of(before), *_files_of(after)]
        check_output(path, inputs, force=force, folder=False)
        stack.enter_context(output_lock(path, wait))
        check_output(path, inputs, force=force, folder=False)
        file = stack.enter_context(staged_file(path, None, force=force))
        writer = PatchWriter(file)
        chosen = approximated(before, after, signs, low_rank, rank, exact)
        index, left = make(
            (before, os.fspath(old)),
            (after, os.fspath(new)),
            writer,
            level=level,
            signs=chosen.signs,
            low_rank=chosen.low_rank,
            rank=chosen.rank,
            progress=progress,
        )
        notes = [*chosen.notes, *_stored_exactly(left)]
        size, left_out = writer.size, folders_in(os.fspath(new))
        on_models = _on_models(before, after)
    if left_out:
        notes.append(f"subfolders, which are not stored in the patch: {listing(left_out, where='')}")
    if (signs or low_rank) and not index.errors and not left:
        notes.append("no tensor is approximated: the patterns select no matrix of floats whose changes need much space")
    return replace(described(path, index, size, time.perf_counter() - began), notes=(*notes, *on_models))


def _on_models(old: Checkpoint, new: Checkpoint) -> list[str]:
    """Return the notes of ``inspect`` on both checkpoints, and notes on zeros that were read in place of missing parts.

    A note that applies to both checkpoints is returned once, for the new one.
    """
    from .inputs.fitting_notes import checkpoint_notes

    found = checkpoint_notes(new)
    both = {note.replace(escape(new.path), escape(old.path)) for note in found}
    found += [note for note in checkpoint_notes(old) if note not in both]
    return [*found, *seen_zero_notes((new, old), said=found)]


def _stored_exactly(why: Mapping[str, str]) -> Iterator[str]:
    """Yield a note for each reason why matrices that ``low_rank`` selects are stored exactly.

    ``why`` maps the keys of these matrices to the reasons.
    """
    for reason in dict.fromkeys(why.values()):
        keys = [key for key, one in why.items() if one == reason]
        are, them = ("is", "it") if len(keys) == 1 else ("are", "them")
        said = f"{count(len(keys), 'matrix', 'matrices')} {are} stored exactly, although the patterns select {them}"
        yield f"{said} ({reason}): {listing(keys, 3, where='')}"


def _files_of(checkpoint: Checkpoint) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of each file of a checkpoint and, if it is a folder, of all entries of the folder."""
    yield from identities(checkpoint.open_files().values())
    if os.path.isdir(checkpoint.path):
        for entry in os.scandir(checkpoint.path):
            with suppress(OSError):
                found = entry.stat()
                yield found.st_dev, found.st_ino


@checked
def apply_patch(
    old: Path,
    patches: Path | Sequence[Path],
    output: Path,
    *,
    force: bool = False,
    wait: float | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Apply one or more patches, in this order, to the checkpoint ``old``, and write the result to ``output``.

    ``output`` is a folder if the last patch was made for a folder, else a file. Before anything is written, the CRC-32
    of every tensor that a patch needs is compared with the patch; each file that is written must have the SHA-256 in
    the patch. The format and the shards of ``old`` may differ from those of the checkpoint that the first patch was
    made from.

    Raises ConfigError if no patch is given; PlanError if ``old`` is not the checkpoint that the first patch was made
    from, or a patch does not fit the patch before it; FormatError if a patch is damaged; OutputError if the output
    cannot be written.
    """
    from ..engine.output.signing import earlier_signature_notes, earlier_signatures
    from ..engine.patch.apply import check_base, write_files
    from ..engine.patch.bases import OldCheckpoint, PatchedCheckpoint
    from ..engine.patch.patch_file import open_patch

    began = time.perf_counter()
    given = [patches] if isinstance(patches, (str, os.PathLike)) else list(patches)
    if not given:
        raise ConfigError("no patch given.", hint="Give one or more patches, in the order in which they were made.")
    path = os.fspath(output)
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(old))
        opened = [stack.enter_context(closing(open_patch(os.fspath(one)))) for one in given]
        first, last = opened[0].index, opened[-1]
        inputs = [*_files_of(before), *identities(one.file for one in opened)]
        path = _checked_output(path, last.index, inputs, force=force)
        base: OldCheckpoint | PatchedCheckpoint = OldCheckpoint(before, os.fspath(old))
        for number, one in enumerate(opened):
            base = PatchedCheckpoint(base, opened[number - 1]) if number else base
            check_base(base, one)
        stack.enter_context(output_lock(path, wait))
        _checked_output(path, last.index, inputs, force=force)
        signatures = earlier_signatures(
            os.fspath(output),
            folder=last.index.folder,
            signed=any(file.name == MODEL_SIGNATURE for file in last.index.files),
        )
        write_files(base, last, stack.enter_context(_staged(path, last.index, force=force)), progress)
        index, nbytes = replace(last.index, old=first.old), sum(one.file.size for one in opened)
    found = described(os.fspath(output), index, nbytes, time.perf_counter() - began)
    return replace(found, notes=(*_on_output(os.fspath(output), last.index), *earlier_signature_notes(signatures)))


def _on_output(path: str, index: PatchIndex) -> tuple[str, ...]:
    """Return the notes of ``inspect`` on an output that a patch made, and on older files in its folder.

    There are none if the output cannot be opened as a checkpoint. ``index`` is the index of the patch.
    """
    from .inputs.fitting_notes import checkpoint_notes
    from .model_folder.earlier_files import earlier_files_notes

    with suppress(CheckpointError), open_checkpoint(path) as checkpoint:
        earlier = earlier_files_notes(path, {file.name for file in index.files}, ()) if index.folder else ()
        return tuple(dict.fromkeys((*earlier, *checkpoint_notes(checkpoint))))
    return ()


def _checked_output(path: str, index: PatchIndex, inputs: Sequence[tuple[int, int]], *, force: bool) -> str:
    """Return the path of an output; if the output is a folder, symbolic links in the path are resolved.

    ``index`` is the index of the patch that makes the output, and ``inputs`` are the (device, inode) of all input
    files. Raises OutputError if the output cannot be written, or is an input.
    """
    if not index.folder and path.endswith("/"):
        raise OutputError(
            f"the output of this patch is one file, but {escape(path)} is a folder.", hint="Give the path of a file."
        )
    if index.folder and is_weights(path) and not os.path.isdir(path):
        name = os.path.splitext(path)[0]
        name = f"{name}-model" if os.path.isfile(name) else name
        raise OutputError(
            f"the output of this patch is a folder of {count(len(index.files), 'file')}, but {escape(path)} is the "
            "name of a file.",
            hint=f"Give the path of a folder, such as {escape(name)}/.",
        )
    path = os.path.realpath(path) if index.folder else path
    check_output(path, inputs, force=force, folder=index.folder)
    check_space(os.path.dirname(os.path.abspath(path)), sum(file.size for file in index.files), path)
    return path


@contextmanager
def _staged(path: str, index: PatchIndex, *, force: bool) -> Iterator[dict[str, StagedFile]]:
    """Yield {name: temporary file} for an output; after the ``with`` block, the files replace an earlier output.

    The name of a single file is ''. Raises OutputError if files would be replaced without ``force``.
    """
    from ..engine.output.companion_files import existing_checkpoint, stale_companions

    size = sum(file.size for file in index.files)
    if not index.folder:
        with staged_file(path, size, force=force) as file:
            yield {"": file}
        return
    names = (*(file.name for file in index.files), MODEL_SIGNATURE)
    there = [name for name in names if os.path.lexists(os.path.join(path, name))]
    earlier = stale_companions(path, PlanTarget("", "", "")).stale
    present = list(dict.fromkeys([*existing_checkpoint(path), *there, *earlier]))
    if present and not force:
        raise OutputError(
            f"{escape(path)} contains files of this output or of an earlier output: {listing(present)}.",
            hint="Use --force to replace them.",
        )
    with staged_folder(path, size, stale=present) as folder:
        yield {file.name: folder.file(file.name, file.size) for file in index.files}


@checked
def read_patch(path: Path) -> Patch:
    """Return a description of a patch, from the index in the file; raises FormatError if it is not a valid patch."""
    from ..engine.patch.patch_file import open_patch

    with closing(open_patch(os.fspath(path))) as patch:
        return described(os.fspath(path), patch.index, patch.file.size, 0.0)
