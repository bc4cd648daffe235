"""``make_patch`` and ``apply_patch``: what fine-tuning changed, in a small file, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from ..analysis.patch import Patch, described
from ..checkpoint.opening import open_checkpoint
from ..errors import ConfigError, OutputError
from ..storage.write.folders import staged_folder
from ..storage.write.locking import output_lock
from ..storage.write.output_checks import check_output, identities
from ..storage.write.staging import StagedFile, staged_file
from ..util.text import escape, listing
from .inputs.argument_types import Path, Progress, checked

__all__ = ["apply_patch", "make_patch", "read_patch"]


@checked
def make_patch(
    old: Path,
    new: Path,
    output: Path,
    *,
    level: int = 1,
    force: bool = False,
    wait: float | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Write what turns the checkpoint ``old`` into ``new``, bit for bit, to the file ``output``.

    Both are files or folders; a folder's other files (configuration, tokeniser) are part of it. Tensors with equal
    bytes take no room; of the others, the XOR with the old tensor of the same name and dtype is stored, sorted by bytes
    and compressed with Zstandard (``level`` 1 to 19). ``wait`` is as in ``apply``.

    Raises what ``open_checkpoint`` raises, ConfigError without the package zstandard, OutputError if the patch cannot
    be written.
    """
    from ..engine.patch.make import make_patch as make
    from ..engine.patch.patch_file import PatchWriter

    began = time.perf_counter()
    if not 1 <= level <= 19:
        raise ConfigError(f"--level {level} is not a level of Zstandard.", hint="Give a number from 1 to 19.")
    path = os.fspath(output)
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(old))
        after = stack.enter_context(open_checkpoint(new))
        inputs = [*before.open_files().values(), *after.open_files().values()]
        check_output(path, identities(inputs), force=force, folder=False)
        stack.enter_context(output_lock(path, wait))
        check_output(path, identities(inputs), force=force, folder=False)
        file = stack.enter_context(staged_file(path, None, force=force))
        writer = PatchWriter(file)
        index = make(before, after, writer, level=level, progress=progress)
        size = writer.size
    return described(path, index, size, time.perf_counter() - began)


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
    """Write to ``output`` the checkpoint that a patch, or several in turn, makes of ``old``.

    ``output`` is a folder if the last patch was made to a folder, else a file. Before a byte is written, the CRC-32 of
    every tensor that a patch needs is compared; what is written must have the SHA-256 of the files that the patch was
    made to. ``old`` may be in another format, or in other shards, than what the patch was made from.

    Raises PlanError if ``old`` is not the checkpoint that the first patch was made from, or a patch does not fit the
    one before it; FormatError if a patch is damaged; OutputError if the output cannot be written.
    """
    from ..engine.output.layout import existing_checkpoint
    from ..engine.patch.apply import OldCheckpoint, PatchedCheckpoint, check_base, write_files
    from ..engine.patch.patch_file import open_patch

    began = time.perf_counter()
    given = [patches] if isinstance(patches, (str, os.PathLike)) else list(patches)
    if not given:
        raise ConfigError("no patch given.", hint="Name one or more, in the order in which they were made.")
    path = os.fspath(output)
    with ExitStack() as stack:
        before = stack.enter_context(open_checkpoint(old))
        opened = [stack.enter_context(closing(open_patch(os.fspath(one)))) for one in given]
        last = opened[-1]
        files = {file.name: file.size for file in last.index.files}
        inputs = list(identities([*before.open_files().values(), *(one.file for one in opened)]))
        folder = last.index.folder
        if not folder and path.endswith("/"):
            raise OutputError(f"the patch makes one file, and {escape(path)} is a folder.", hint="Name a file.")
        path = path.rstrip("/") if folder else path
        check_output(path, inputs, force=force, folder=folder)
        base: OldCheckpoint | PatchedCheckpoint = OldCheckpoint(before)
        for number, one in enumerate(opened):
            base = PatchedCheckpoint(base, opened[number - 1]) if number else base
            check_base(base, one, lambda nbytes: None)
        stack.enter_context(output_lock(path, wait))
        check_output(path, inputs, force=force, folder=folder)
        size = sum(files.values())
        if folder:
            there = [name for name in files if os.path.lexists(os.path.join(path, name))]
            present = list(dict.fromkeys([*existing_checkpoint(path), *there]))
            if present and not force:
                raise OutputError(
                    f"{escape(path)} holds files of the output: {listing(present)}.",
                    hint="Use --force to replace them.",
                )
            staged = stack.enter_context(staged_folder(path, size, stale=present))
            written: dict[str, StagedFile] = {name: staged.file(name, size) for name, size in files.items()}
        else:
            written = {"": stack.enter_context(staged_file(path, size, force=force))}
        write_files(base, last, written, progress)
        index, nbytes = last.index, sum(one.file.size for one in opened)
    return described(os.fspath(output), index, nbytes, time.perf_counter() - began)


@checked
def read_patch(path: Path) -> Patch:
    """Return what a patch is, from its index; raises FormatError if it is not a valid patch."""
    from ..engine.patch.patch_file import open_patch

    with closing(open_patch(os.fspath(path))) as patch:
        return described(os.fspath(path), patch.index, patch.file.size, 0.0)
