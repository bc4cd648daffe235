"""Applies a patch: checks that the old checkpoint is the one that the patch was made from, and writes the new files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from ...storage.read.base import Progress
from ...storage.write.staged_file import StagedFile
from ...util.text import escape
from ..checksums import crc32
from .bases import Base, not_the_base, tasks
from .blocks import BLOCK
from .in_order import in_order
from .index import BASED, NewFile, Segment
from .patch_file import PatchFile, damaged

__all__ = ["check_base", "write_files"]


def check_base(base: Base, patch: PatchFile) -> None:
    """Raise PlanError if ``base`` does not fit the patch: a tensor or file that is needed is missing or different."""
    wanted = {
        (segment.key, segment.nbytes, segment.crc): segment
        for file in patch.index.files
        for segment in file.segments
        if segment.kind in BASED
    }
    lacking = [segment.key for segment in wanted.values() if base.nbytes(segment.key) is None]
    if lacking:
        raise not_the_base(base, patch, lacking)

    def check(segment: Segment) -> tuple[str, bool]:
        known = base.crc(segment.key, segment.nbytes)
        if known is not None:
            return segment.key, known == segment.crc
        buffer, crc = memoryview(bytearray(min(BLOCK, segment.nbytes))), 0
        for begin in range(0, segment.nbytes, BLOCK):
            view = buffer[: min(BLOCK, segment.nbytes - begin)]
            base.read(segment.key, begin, view)
            crc = crc32(view, crc)
        return segment.key, crc == segment.crc

    wrong = []
    for key, equal in in_order((lambda one=one: check(one)) for one in wanted.values()):  # type: ignore[misc]
        if not equal:
            wrong.append(key)
    for name, listed in patch.index.old_files.items():
        found = base.file(name)
        if found is None or found[0] != listed.size or _digest(found[1]) != listed.sha256:
            wrong.append(name)
    if wrong:
        raise not_the_base(base, patch, wrong)


def _digest(blocks: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def write_files(
    base: Base, patch: PatchFile, files: Mapping[str, StagedFile], progress: Progress | None = None
) -> None:
    """Apply a patch to ``base``, and write the new files into ``files``: {name: open temporary file}.

    Raises FormatError if a new file does not have the SHA-256 that is stored in the patch.
    """
    size, done = sum(file.size for file in patch.index.files), 0
    for number, file in enumerate(patch.index.files):
        digest, at = hashlib.sha256(), 0
        for blocks in in_order(tasks(base, patch, number)):
            for block in blocks:
                digest.update(block)
                files[file.name].write(at, block)
                at += len(block)
                done += len(block)
                if progress is not None:
                    progress(done, size)
        _check_made(patch, file, at, digest.hexdigest())


def _check_made(patch: PatchFile, file: NewFile, size: int, sha256: str) -> None:
    if (size, sha256) != (file.size, file.sha256):
        name = f" {escape(file.name)}" if file.name else ""
        raise damaged(patch.file, f"the new file{name} does not have the SHA-256 that is stored in the patch")
