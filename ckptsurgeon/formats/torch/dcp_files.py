"""Reads the data files of a ``torch.distributed.checkpoint`` folder: each contains a sequence of archives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, SourceError, UnsafeError
from ...storage.read.base import File, Folder
from ...tensors.info import Storage, TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from ..base import limits
from ..base.header import FilePrint, digest_outside
from ..base.slice import FileSlice
from ..pickle.state import Rebuild
from ..pickle.torch import rebuilders
from ..torch_zip import TorchArchive, storages_in

__all__ = ["PieceFiles"]

OTHERS = 1024
"""How many of the files that the metadata does not list are looked at."""


@dataclass
class PieceFiles:
    """The files that hold the pieces of tensors; each is opened when it is needed.

    ``handles``, ``storages`` and ``digests`` are by file name. ``storages`` has the storages that were found in the
    file.
    """

    folder: Folder
    handles: dict[str, File] = field(default_factory=dict)
    storages: dict[str, list[Storage]] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    """The files that the metadata lists."""
    _rebuild: Rebuild = field(default_factory=rebuilders)
    _known: dict[bytes, TensorInfo] = field(default_factory=dict)
    _pickled: int = 0
    _data: int = 0

    def affords(self, length: int) -> bool:
        """Count ``length`` bytes of a piece that is not a tensor; return whether they may be read.

        The limit for all such pieces together is ``limits.PIECE_DATA`` bytes.
        """
        self._data += max(length, 0)
        return self._data <= limits.PIECE_DATA

    def close(self) -> None:
        """Close all files."""
        for file in self.handles.values():
            file.close()

    def archive(self, name: str, offset: int, length: int) -> Any:
        """Return the content of an archive in the file ``name``: a TensorInfo, or other data.

        The archive is the ``length`` bytes of the file from ``offset`` on. Raises FormatError if the file cannot be
        read or the archive is damaged, UnsafeError if the pickles of all pieces are too large.
        """
        if name not in self.handles:
            try:
                self.handles[name] = self.folder.file(name)
            except SourceError as error:
                why = error.message.removeprefix(escape(os.path.join(self.folder.uri, name))).strip()
                raise FormatError(
                    f"the metadata lists the file {escape(name)}, which {why}", rule="missing file"
                ) from error
            self.storages[name], self.digests[name] = [], hashlib.sha256()
        archive = self._opened(name, offset, length)
        if any(entry.method for entry in archive.zip.entries.values()):
            raise FormatError(
                f"the file {escape(name)} has a compressed piece, which cannot be read.", rule="compressed piece"
            )
        if archive.pickle not in self._known:
            self._pickled += len(archive.pickle)
        if self._pickled > limits.PIECE_PICKLES:
            raise UnsafeError(
                f"the pickled data of all parts of tensors has more bytes than the limit of {limits.PIECE_PICKLES}.",
                rule="pickle size",
            )
        tree = archive.load_cached(self._rebuild, self._known)
        self.digests[name].update(archive.digest().encode())
        for storage in storages_in(tree):
            storage.offset += offset
            self.storages[name].append(storage)
        return tree

    def _opened(self, name: str, offset: int, length: int) -> TorchArchive:
        try:
            return TorchArchive(FileSlice(self.handles[name], offset, length), name)
        except FormatError as error:
            if error.rule != "zip end":
                raise
            where = f"the bytes {offset:,} to {offset + length:,} of {escape(name)}"
            raise FormatError(
                f"{where} should be a piece of a tensor, but are damaged.",
                hint="Fetch or save this file again.", rule="damaged piece",
            ) from None  # fmt: skip

    def unlisted_notes(self) -> Iterator[str]:
        """Yield a note on data files that the metadata does not list; a rank without tensors writes an empty file."""
        others = [name for name in self.folder.names() if name.endswith(".distcp") and name not in self.listed]
        found = [name for name in others[:OTHERS] if self._size(name)]
        if found:
            what = f"{count(len(found), 'file')} that .metadata does not list"
            why = f"perhaps {'it' if len(found) == 1 else 'they'} and .metadata are of different saves"
            yield Note(NoteKind.REMARK, f"left out {what} ({why}): {listing(found, where='')}")

    def _size(self, name: str) -> int:
        file = self.folder.file(name)
        try:
            return file.size
        finally:
            file.close()

    def headers(self) -> list[FilePrint]:
        """Return the fingerprint of each file, with a digest of the headers of its pieces."""
        return [FilePrint.of(file, self.digests[name].hexdigest(), name) for name, file in self.handles.items()]

    def frames(self) -> dict[str, str]:
        """Return {file name: digest of the file's bytes outside the tensors}."""
        return {
            name: digest_outside(file, sorted((s.offset, s.offset + s.nbytes) for s in self.storages[name]))
            for name, file in self.handles.items()
        }
