"""Reads a zip or tar archive with a checkpoint as if it were a folder, without extracting its members.

ESPnet packs models into a zip (``espnet2.bin.pack``), NeMo into a tar (``.nemo``). NeMo's tar may be compressed as a
whole; if so, it is unpacked to a temporary file. In all other archives, only members that are stored without
compression can be read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import FormatError, UnsafeError
from ..storage.read.base import File, Folder, Source
from ..storage.read.uri import open_source
from ..util.text import escape, human_bytes, listing
from ._choosing import only_pickle
from ._espnet_pack import META
from .base import limits
from .base.format_table import is_exported, is_weights
from .base.header import FilePrint, Header, naming
from .base.slice import FileSlice
from .base.unpacked import GZIP, UnpackedFile, first_bytes
from .torch.tar import is_tar, plain_members
from .unsupported.text import argument
from .zip.archive import is_of_export, is_of_torch, read_archive
from .zip.records import STORED

__all__ = ["ArchiveFolder", "Member", "archive_folder", "of_archive", "open_member"]

HEAD = 512
"""The number of bytes of a file that are read to see whether the file is an archive."""
_SAVED = ("CKPT.yaml", META, ".metadata")
"""Names of files that show that a folder is a checkpoint of SpeechBrain, ESPnet or torch distributed."""


NEMO = ("model_config.yaml", "model_weights.ckpt", "model_weights")
_NEMO_CONFIG, _NEMO_WEIGHTS = NEMO[0], NEMO[2]
"""A large ``.nemo`` model has a folder ``model_weights`` (torch distributed) instead of one file with weights."""


class _Place(NamedTuple):
    """Where the bytes of a member are in the archive: they begin at ``offset``, and there are ``size`` of them."""

    offset: int
    size: int


def archive_folder(file: Source, head: bytes) -> ArchiveFolder | None:
    """Return the folder in the archive ``file`` that contains a checkpoint; None if no folder has one.

    Also returns None if the checkpoint would have to be unpacked first. ``head`` has the first bytes of the file. A
    folder that contains nothing but one subfolder is replaced by this subfolder. Raises FormatError or UnsafeError if
    the archive is damaged, UnsafeError if too many folders are nested.
    """
    folder = _whole(file, head) if isinstance(file, File) and not isinstance(file, Member) else None
    if folder is None:
        return None
    for _ in range(limits.TREE_DEPTH + 1):  # the archive, and the levels in it
        if folder.has_checkpoint:
            return folder
        if not (name := folder.way_in):
            return None
        folder = folder.inside(name)
    raise UnsafeError(
        f"{escape(file.uri)} has folders that are nested more than {limits.TREE_DEPTH} levels deep.", rule="tree depth"
    )


def _whole(file: File, head: bytes) -> ArchiveFolder | None:
    """Return the whole archive ``file`` as a folder; None if ``file`` is no archive, or is an archive that torch wrote.

    Also returns None if a zip archive contains a compressed checkpoint. ``head`` has the first bytes of the file.
    """
    if head.startswith(b"PK"):
        archive = read_archive(file)
        packed = [name for name, one in archive.entries.items() if one.method != STORED and is_weights(name)]
        if packed or is_of_torch(archive.entries) or is_of_export(archive.entries):
            return None
        files = [one for one in archive.entries.values() if not one.name.endswith("/")]
        plain = {one.name: _Place(one.data, one.stored) for one in files if one.method == STORED}
        return ArchiveFolder(archive.file, plain, compressed=[one.name for one in files if one.method != STORED])
    if head.startswith(GZIP) and _is_nemo(file.name, first_bytes(head, HEAD)):
        file = UnpackedFile(file)
        head = file.read(0, min(HEAD, file.size))
    if is_tar(head):
        with naming(file):
            members = {one.name: _Place(one.begin, one.end - one.begin) for one in plain_members(file)}
        return ArchiveFolder(file, members)
    return None


def _is_nemo(name: str, head: bytes) -> bool:
    """Return whether a compressed file is a NeMo model; ``head`` has the first bytes of its content."""
    first = head[:100].partition(b"\0")[0].decode("utf-8", "replace").removeprefix("./").rstrip("/")
    return is_tar(head) and (name.lower().endswith(".nemo") or first in NEMO)


def open_member(path: str) -> Member | None:
    """Return the member at a path that leads into an archive, such as ``models.zip/a.pth``; None for any other path.

    Raises FormatError if the archive lacks the member, if the member is a folder or is compressed, or if the archive is
    one checkpoint of torch; FormatError or UnsafeError if the archive is damaged.
    """
    archive = os.path.dirname(path)
    while archive and not os.path.lexists(archive) and os.path.dirname(archive) != archive:
        archive = os.path.dirname(archive)
    if "://" in path or not os.path.isfile(archive):
        return None
    file, name = open_source(archive), path[len(archive) :].strip("/")
    assert isinstance(file, File)
    head = file.read(0, min(HEAD, file.size))
    folder = _whole(file, head)
    if folder is None and not head.startswith(b"PK"):
        return None
    if not name:
        raise FormatError(f"{escape(archive)} is a file, not a folder.", hint=f"Give the path {escape(archive)}.")
    members: Collection[str] = folder.others(()) if folder is not None else read_archive(file).entries
    if folder is None and (is_of_torch(members) or is_of_export(members)):
        said = f"{escape(archive)} is one checkpoint of torch: {escape(name)} is only a part of this checkpoint."
        raise FormatError(said, hint=f"Give the path {escape(archive)}.")
    _check_is_file(archive, name, members)
    if folder is not None and name not in folder.compressed:
        return folder.file(name)
    hint = f"Unpack it, and use the unpacked file: unzip {argument(archive)} {argument(name)}"
    raise FormatError(f"{escape(archive)} has compressed files: {escape(name)} cannot be read from it.", hint=hint)


def _check_is_file(archive: str, name: str, members: Collection[str]) -> None:
    """Raise FormatError unless ``name`` is one of ``members``, the files of the archive at the path ``archive``."""
    if any(one.startswith(f"{name}/") for one in members):
        raise FormatError(
            f"{escape(name)} is a folder in the archive {escape(archive)}.",
            hint="Give the path of a file in it, or unpack the archive.",
        )
    if name not in members:
        raise _missing(archive, name)


def of_archive(header: Header, folder: ArchiveFolder) -> Header:
    """Return ``header`` with the archive's fingerprint added to ``files``, and with a note that it is in an archive.

    ``header`` is the header of a checkpoint in ``folder``, a folder of the archive.
    """
    from .hdf5.keras import keras_metadata

    read = {one.name for one in header.files}
    others = folder.others(read)
    note = f"read from the archive: {listing(sorted(read), 2, where='')}"
    if isinstance(folder.archive, UnpackedFile):
        note += f", which was unpacked to a temporary file of {human_bytes(folder.archive.size)}"
    note += f"; the archive's other files are not copied: {listing(others, 4, where='')}" if others else ""
    return replace(
        header,
        files=(folder.fingerprint(), *header.files),
        handles={**header.handles, "": folder.archive},
        metadata={**keras_metadata(folder), **header.metadata},
        notes=(note, *header.notes),
    )


class ArchiveFolder(Folder):
    """A folder in an archive; ``within`` is its path with a slash at the end, or '' for the whole archive.

    ``compressed`` has the paths of the files in the archive that cannot be read, since they are compressed.
    """

    def __init__(
        self, archive: File, places: Mapping[str, _Place], within: str = "", compressed: Sequence[str] = ()
    ) -> None:
        self.uri = f"{archive.uri}/{within}".rstrip("/")
        self.name = within.rstrip("/").rpartition("/")[2] or archive.name
        self.archive = archive
        self._places = places
        self._within, self.compressed = within, compressed
        self._paths = [name.removeprefix(within) for name in places if name.startswith(within)]

    def fingerprint(self) -> FilePrint:
        """Return the fingerprint of the archive, with a digest of its members' names, offsets and sizes."""
        digest = hashlib.sha256(repr(sorted(self._places.items())).encode()).hexdigest()
        found = FilePrint.of(self.archive, digest, "")
        if isinstance(self.archive, UnpackedFile):
            return replace(found, size=self.archive.packed_size)
        return found

    @property
    def has_checkpoint(self) -> bool:
        """Whether a file directly in this folder has the name of a checkpoint, or describes one (``CKPT.yaml``).

        A pickle counts if it is the only pickle in this folder, and no file in the subfolders has the name of a
        checkpoint.
        """
        if any(is_weights(name) or is_exported(name) or name in _SAVED for name in self.names()):
            return True
        return bool(only_pickle(self.names())) and not any(map(is_weights, self._paths))

    @property
    def way_in(self) -> str:
        """The name of the subfolder in which to search for a checkpoint; '' if there is none.

        In a NeMo model, this is ``model_weights``. In other archives, it is the only subfolder, if there are no files
        beside it.
        """
        names, folders = self.names(), self.folders()
        if _NEMO_CONFIG in names:
            return _NEMO_WEIGHTS if _NEMO_WEIGHTS in folders else ""
        return folders[0] if len(folders) == 1 and not names else ""

    def others(self, read: Collection[str]) -> list[str]:
        """Return the paths of all files in the archive, also outside this folder, other than those in ``read``.

        ``read`` has paths relative to this folder.
        """
        own = {self._within + name for name in read}
        return [path.removeprefix(self._within) for path in sorted({*self._places, *self.compressed} - own)]

    def names(self) -> list[str]:
        """Return the names of the files in this folder, sorted."""
        return sorted(path for path in self._paths if "/" not in path)

    def folders(self) -> list[str]:
        """Return the names of the subfolders of this folder, sorted."""
        return sorted({path.partition("/")[0] for path in self._paths if "/" in path})

    def inside(self, name: str) -> ArchiveFolder:
        """Return the subfolder ``name`` of this folder."""
        return ArchiveFolder(self.archive, self._places, f"{self._within}{name}/", self.compressed)

    def file(self, name: str) -> Member:
        """Return the file ``name`` of this folder; raises FormatError if there is none."""
        place = self._places.get(self._within + name)
        if place is None:
            raise _missing(self.uri, name)
        return Member(self, name, place)


def _missing(archive: str, name: str) -> FormatError:
    return FormatError(f"the archive {escape(archive)} does not contain {escape(name)}.", rule="missing member")


class Member(FileSlice):
    """A member of an archive, read like a file; ``path`` is its path relative to the ArchiveFolder that returned it."""

    def __init__(self, folder: ArchiveFolder, name: str, place: _Place) -> None:
        super().__init__(folder.archive, place.offset, place.size)
        self.uri = f"{folder.uri}/{name}"
        self.name = name.rpartition("/")[2]
        self.path = name
        self.mtime_ns = folder.archive.mtime_ns
        self.validator = folder.archive.validator
        self._folder = folder

    def folder(self) -> ArchiveFolder:
        """Return the ArchiveFolder that returned this member."""
        return self._folder
