"""Makes a patch: goes through the files of the new checkpoint and encodes what the old one does not have."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import SourceError
from ...storage.read.base import File, Folder, Progress
from ...storage.read.uri import open_source
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..checksums import combine, crc32
from .blocks import BLOCK, Bytes, Encoder
from .in_order import in_order
from .patch_file import NewFile, NewTensor, OldFile, PatchIndex, PatchWriter, Segment

__all__ = ["make_patch"]

LOOK = 1 << 16
"""Bytes at the beginning of two tensors of other names that are compared, to find one that was renamed."""


@dataclass(frozen=True)
class _Range:
    """A run of bytes of a new file, with the tensor that has them, if any, and the old tensor to compare them with."""

    offset: int
    nbytes: int
    key: str = ""
    itemsize: int = 1
    old: str = ""


@dataclass(frozen=True)
class _Block:
    """What was found in a block: its bytes, the encoded ones, the CRC-32 of the new and of the old bytes."""

    new: Bytes
    encoded: bytes
    crc: int
    old_crc: int


def make_patch(
    old: Checkpoint, new: Checkpoint, writer: PatchWriter, *, level: int = 1, progress: Progress | None = None
) -> PatchIndex:
    """Write what turns the files of ``old`` into those of ``new``, bit for bit; return the index of the patch.

    ``level`` is that of Zstandard. Raises SourceError if a file cannot be read or changes meanwhile, OutputError if the
    patch cannot be written.
    """
    with closing(_NewFiles(new)) as found:
        beside = _old_files(old)
        local = threading.local()
        size, done = sum(file.size for _, file in found.files), 0
        files: list[NewFile] = []
        tensors: dict[str, NewTensor] = {}
        needed: dict[str, OldFile] = {}
        bases = _bases(old, new)
        for name, file in found.files:
            same = beside(name, file) if name not in new.open_files() else None
            if same is not None:
                needed[name] = same
                files.append(NewFile(name, file.size, same.sha256, (Segment("file", file.size, name),)))
                done += file.size
                continue
            digest, segments = hashlib.sha256(), list[Segment]()
            for piece in _ranges(new, bases, name, file.size):
                blocks = []
                crcs: list[tuple[int, int]] = []
                old_crcs: list[tuple[int, int]] = []
                for block in in_order(_tasks(piece, file, old, level, local)):
                    digest.update(block.new.data)
                    writer.add(block.encoded)
                    blocks.append(len(block.encoded))
                    crcs.append((block.crc, block.new.size))
                    old_crcs.append((block.old_crc, block.new.size))
                    done += block.new.size
                    if progress is not None:
                        progress(done, size)
                if piece.key:
                    tensors[piece.key] = NewTensor(
                        len(files), piece.offset, piece.nbytes, new[piece.key].dtype, combine(crcs)
                    )
                segments.append(_segment(piece, blocks, combine(old_crcs)))
            files.append(NewFile(name, file.size, digest.hexdigest(), tuple(_joined(segments))))
    index = PatchIndex(_name(old), _name(new), found.folder, tuple(files), tensors, needed)
    writer.finish(index)
    return index


def _name(checkpoint: Checkpoint) -> str:
    return os.path.basename(checkpoint.path.rstrip("/")) or checkpoint.path


class _NewFiles:
    """The files of the new checkpoint: all those of its folder, or the single file, with "" for its name."""

    def __init__(self, new: Checkpoint) -> None:
        source = open_source(new.path)
        self.folder = isinstance(source, Folder)
        self._opened: list[File] = []
        self.files: list[tuple[str, File]] = []
        handles = new.open_files()
        if not isinstance(source, Folder):
            source.close()
            self.files = list(handles.items())
            if len(self.files) != 1:
                raise SourceError(
                    f"{escape(new.path)} is one of several files of a checkpoint.", hint="Name their folder."
                )
            return
        names = [name for name in source.names() if not name.startswith(".")]
        for name in sorted({*names, *handles}):
            if os.path.basename(name) != name:
                raise SourceError(
                    f"{escape(name)} is in a folder of its own in {escape(new.path)}.",
                    hint="Make a patch of each folder.",
                )
            if name not in handles:
                self._opened.append(source.file(name))
            self.files.append((name, handles[name] if name in handles else self._opened[-1]))

    def close(self) -> None:
        """Close the files that are not the checkpoint's own."""
        for file in self._opened:
            file.close()


def _old_files(old: Checkpoint) -> Callable[[str, File], OldFile | None]:
    """Return a function that returns the old file with a name if it has the same bytes as a new one; else None."""
    source = open_source(old.path)
    names = set(source.names()) if isinstance(source, Folder) else set()

    def same(name: str, new: File) -> OldFile | None:
        if name not in names or not isinstance(source, Folder):
            return None
        with closing(source.file(name)) as file:
            if file.size != new.size:
                return None
            digests = {_digest(one) for one in (file, new)}
        return OldFile(new.size, digests.pop()) if len(digests) == 1 else None

    return same


def _digest(file: File) -> str:
    digest = hashlib.sha256()
    for begin in range(0, file.size, BLOCK):
        digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return digest.hexdigest()


def _bases(old: Checkpoint, new: Checkpoint) -> dict[str, str]:
    """Return, for each new tensor, the key of the old one that it is compared with.

    That is the tensor of the same name and dtype; else one that no new tensor has the name of, with the same dtype,
    shape and first bytes.
    """
    found = {key: key for key, info in new.items() if _is_base(old.get(key), info)}
    free: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for key, info in old.items():
        if key not in new and info.is_plain:
            free[info.dtype, info.shape].append(key)
    for key, info in new.items():
        others = free.get((info.dtype, info.shape), ()) if key not in found and info.is_plain and info.nbytes else ()
        for other in others:
            if _first_bytes(old, old[other]) == _first_bytes(new, info):
                found[key] = other
                break
    return found


def _is_base(old: TensorInfo | None, new: TensorInfo) -> bool:
    return old is not None and old.is_plain and new.is_plain and old.dtype == new.dtype and old.nbytes > 0


def _first_bytes(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    assert info.storage is not None  # plain
    return checkpoint.file(info).read(info.storage.offset + info.offset, min(LOOK, info.nbytes))


def _ranges(new: Checkpoint, bases: dict[str, str], name: str, size: int) -> Iterator[_Range]:
    """Yield the ranges of a file in order: those of its tensors, and the bytes between them."""
    held: list[_Range] = []
    for key, info in new.items():
        storage = info.storage
        if storage is None or storage.file != name or not info.is_plain or not info.nbytes:
            continue
        itemsize = max(1, DTYPES[info.dtype].bits // 8)
        held.append(_Range(storage.offset + info.offset, info.nbytes, key, itemsize, bases.get(key, "")))
    at = 0
    for one in sorted(held, key=lambda one: (one.offset, -one.nbytes)):
        if one.offset < at:
            continue  # it shares its bytes with the one before
        if one.offset > at:
            yield _Range(at, one.offset - at)
        yield one
        at = one.offset + one.nbytes
    if at < size:
        yield _Range(at, size - at)


def _tasks(
    piece: _Range, file: File, old: Checkpoint, level: int, local: threading.local
) -> Iterator[Callable[[], _Block]]:
    base = old[piece.old] if piece.old else None

    def encoded(begin: int, nbytes: int) -> _Block:
        if not hasattr(local, "encoder"):
            local.encoder = Encoder(level)
        values = np.empty(nbytes, np.uint8)
        file.readinto(piece.offset + begin, values.data)
        before: Bytes | None = None
        shared = 0 if base is None else max(0, min(nbytes, base.nbytes - begin))
        if base is not None:
            assert base.storage is not None  # plain
            before = np.zeros(nbytes, np.uint8)
            old.file(base).readinto(base.storage.offset + base.offset + begin, before.data[:shared])
        encoder: Encoder = local.encoder
        old_crc = 0 if before is None else crc32(before.data)
        return _Block(values, encoder.encode(values, before, piece.itemsize), crc32(values.data), old_crc)

    for begin in range(0, piece.nbytes, BLOCK):
        yield lambda begin=begin: encoded(begin, min(BLOCK, piece.nbytes - begin))  # type: ignore[misc]


def _segment(piece: _Range, blocks: Sequence[int], old_crc: int) -> Segment:
    if not piece.old:
        return Segment("raw", piece.nbytes, blocks=tuple(blocks))
    same = Segment("same", piece.nbytes, piece.old, crc=old_crc)
    return replace(same, kind="xor", blocks=tuple(blocks)) if any(blocks) else same


def _joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    yield from (segment for segment in segments if segment.nbytes)
