"""Verifies an output of ``ckpt patch apply``: compares the SHA-256 of each file with the SHA-256 in the patch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

from ...engine.patch.index import NewFile
from ...engine.patch.patch_file import PatchFile
from ...errors import SourceError
from ...planning.plan.receipt import Failure, OutputNote, Verification
from ...storage.folder_files import contents
from ...storage.read.base import File, Folder, Progress
from ...storage.read.uri import leads_out, open_source
from .other_files import digest_of

__all__ = ["verify_patched"]


def verify_patched(output: str, patch: PatchFile, progress: Progress | None = None) -> Verification:
    """Compare every file of an output with the SHA-256 that the patch stores for it.

    If a file has this SHA-256, its tensors are equal, bit for bit, to the tensors of the checkpoint that the patch was
    made for. Files that are not in the patch are noted. Raises SourceError if the output does not exist.
    """
    began, index = time.perf_counter(), patch.index
    source = open_source(output)
    folder = source if isinstance(source, Folder) else None
    if isinstance(source, File):
        source.close()
    if index.folder != (folder is not None):
        kinds = ("a folder", "one file") if folder is not None else ("one file", "a folder")
        return _result(output, patch, {"": f"is {kinds[0]}, but the patch makes {kinds[1]}"}, 0)
    wrong, done, size = dict[str, str](), 0, sum(one.size for one in index.files)
    for one in index.files:
        if why := _fault(output, folder, one):
            wrong[one.name] = why
        done += one.size
        if progress is not None:
            progress(done, size)
    right = [one.name not in wrong for one in index.files]
    compared = sum(right[tensor.file] for tensor in index.tensors.values())
    notes = tuple(_others(folder, {one.name for one in index.files}))
    found = _result(output, patch, wrong, compared)
    return replace(found, nbytes=size, elapsed_s=time.perf_counter() - began, notes=notes)


def _result(output: str, patch: PatchFile, wrong: Mapping[str, str], compared: int) -> Verification:
    """Return the result of a comparison; ``wrong`` maps names of files to faults."""
    failed = tuple(Failure(name, why) for name, why in wrong.items())
    number = len(patch.index.tensors)
    return Verification(output, number, compared, 0, failed=failed, recipe=False, patch=patch.file.uri)


def _fault(output: str, folder: Folder | None, one: NewFile) -> str:
    """Return why a file of an output differs from the file that the patch makes; '' if it does not differ."""
    path = output if folder is None else os.path.join(folder.uri, one.name)
    if folder is not None and leads_out(path):
        return "is a link to a file outside the folder; such links are not followed"
    try:
        source = open_source(path) if folder is None else folder.file(one.name)
        if isinstance(source, File):
            with closing(source) as file:
                if file.size == one.size and digest_of(file) == one.sha256:
                    return ""
        return "does not have the SHA-256 that is stored in the patch"
    except SourceError as error:
        return f"cannot be read: {error.message.rstrip('.')}"


def _others(folder: Folder | None, known: set[str]) -> Iterator[OutputNote]:
    for name in contents(folder) if folder is not None else ():
        if name not in known:
            yield OutputNote(name, "in the folder, but not in the patch")
