"""Writes an output whose destination is an address: into a local folder first, from which each file is uploaded."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from ..read.base import Advance
from ..read.http.spool import Spool
from ..read.uri import shown
from ..write.folders import StagedFolder, locked_folder
from ..write.output_paths import check_space, output_error, remove_leftovers
from .destination import Destination

__all__ = ["UploadedFolder", "scratch_path", "uploaded_folder"]


def scratch_path(uri: str) -> str:
    """Return a local path for the output at ``uri``: each URI has its own path, which is the same in every run.

    It is in the folder for temporary files. The names of all temp files and folders for this output are made from it.
    """
    digest = hashlib.sha256(shown(uri).rstrip("/").encode("utf-8", "surrogatepass")).hexdigest()
    return os.path.join(tempfile.gettempdir(), f"ckpt-upload-{digest[:16]}")


class UploadedFolder(StagedFolder):
    """A local folder, from which each file is uploaded and removed as soon as it is finished.

    If ``late`` is true, all files stay until ``publish``, because an index is computed from them. ``advance`` is called
    with the number of bytes that were sent.
    """

    reserves = False  # all files are open at once, but are uploaded and removed one by one

    def __init__(self, path: str, destination: Destination, *, late: bool = False) -> None:
        super().__init__(path, path)
        self._destination, self._late = destination, late
        self._sent = 0
        self.advance: Advance = lambda nbytes: None

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes, including files that were already uploaded and removed."""
        return super().nbytes + self._sent

    def finished(self, name: str) -> None:
        """Upload a file that is complete, and remove it."""
        if not self._late:
            self._upload(name)

    def _upload(self, name: str) -> None:
        def sent(nbytes: int) -> None:
            self._sent += nbytes
            self.advance(nbytes)

        self._destination.put(name, os.path.join(self.path, name), sent)
        self.remove(name)

    def publish(self, names: Sequence[str], removed: Collection[str]) -> None:
        """Upload the remaining files, and make all files visible at the address, in the order of ``names``.

        ``removed`` are files of an earlier output, which are removed first.
        """
        for name in names:
            if os.path.exists(os.path.join(self.path, name)):
                self._upload(name)
        self._destination.publish(names, removed)


@contextmanager
def uploaded_folder(uri: str, destination: Destination, size: int, *, late: bool = False) -> Iterator[UploadedFolder]:
    """Yield a local folder whose files are uploaded to ``destination``; the block must call its ``publish``.

    The folder is removed after the block. If the block fails, the uploads are discarded. ``size`` is the largest number
    of bytes in the folder at one time. Raises OutputError.
    """
    path = scratch_path(uri)
    remove_leftovers(path)
    temporary = os.path.dirname(path)
    check_space(temporary, size, temporary, Spool.hint)
    try:
        temp, held = locked_folder(path, 0o700)
    except OSError as error:
        raise output_error(path, error) from error
    folder = UploadedFolder(temp, destination, late=late)
    try:
        yield folder
    except BaseException:
        destination.discard()
        raise
    finally:
        folder.close()
        shutil.rmtree(temp, ignore_errors=True)
        os.close(held)
