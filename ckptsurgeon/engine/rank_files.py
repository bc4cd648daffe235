"""Lets a caller write an output with a file for each rank as if it were a single file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..formats.base.rank_layout import SpreadLayout
from ..storage.write.folders import StagedFolder
from ..storage.write.staged_file import StagedFile
from .checksums import crc32

__all__ = ["SpreadFile"]

BLOCK = 1 << 20


class SpreadFile(StagedFile):
    """Distributes the bytes of an output to the files of all ranks; callers use this object as a single file.

    ``write`` writes a tensor's bytes to the files of the ranks that have them. After ``finish``, ``digests`` is {name
    of a file: SHA-256 of its bytes that belong to no tensor}.
    """

    def __init__(self, layout: SpreadLayout, folder: StagedFolder) -> None:
        super().__init__(folder.path, folder.shown)
        self._layout = layout
        self._files: Mapping[str, StagedFile] = {
            name: folder.file(name, one.size) for name, one in layout.files.items()
        }
        self.digests: dict[str, str] = {}
        for name, constants in layout.constants.items():
            for key, data in constants.items():
                self._files[name].write(layout.files[name].slots[key][0], data)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield -1, an invalid descriptor: the kernel cannot copy to it, so that callers use ``write``."""
        yield -1

    def start_writing(self, offset: int, nbytes: int) -> None:
        """Do nothing: the bytes are in several files."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes of tensors to the files of the ranks that have them; raises OutputError."""
        for name, at, part in self._layout.targets(offset, memoryview(data).cast("B")):
            self._files[name].write(at, part)

    def finish(self) -> None:
        """Write the bytes of each file that belong to no tensor, such as the header and the tensors' checksums."""
        for name, layout in self._layout.files.items():
            file, digest = self._files[name], hashlib.sha256()
            checksums = {key: _checksum(file, *slot) for key, slot in layout.slots.items()}
            for offset, data in layout.frame(checksums, ()):
                digest.update(data)
                file.write(offset, data)
            self.digests[name] = digest.hexdigest()


def _checksum(file: StagedFile, offset: int, nbytes: int) -> int:
    """Return the CRC-32 of bytes that were written to a file; the bytes are read from the file."""
    crc = 0
    for at in range(0, nbytes, BLOCK):
        crc = crc32(file.read(offset + at, min(BLOCK, nbytes - at)), crc)
    return crc
