"""Defines the bases of patches (a checkpoint, or the result of an earlier patch), and applies a patch to a base."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from typing import Protocol

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...errors import FormatError, PlanError
from ...storage.read.base import Folder
from ...storage.read.uri import open_source
from ...util.text import count, escape, listing
from .blocks import BLOCK, Bytes, Decoder
from .in_order import THREADS
from .index import Segment
from .low_rank import RightFactor
from .patch_file import PatchFile, damaged

__all__ = ["Base", "OldCheckpoint", "PatchedCheckpoint", "not_the_base", "read_tensor", "tasks"]


class Base(Protocol):
    """The data to which a patch is applied: a checkpoint, or the result of an earlier patch.

    ``name`` is the name in messages.
    """

    name: str

    def nbytes(self, key: str) -> int | None:
        """Return the number of bytes of a tensor; None if it is missing, or is not stored as plain bytes."""
        ...

    def read(self, key: str, begin: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of the tensor ``key`` from byte ``begin`` on.

        Beyond the end of the tensor, ``view`` is filled with zeros.
        """
        ...

    def crc(self, key: str, nbytes: int) -> int | None:
        """Return the CRC-32 of a tensor's first ``nbytes`` bytes if it is known without reading them; else None."""
        ...

    def file(self, name: str) -> tuple[int, Iterator[bytes | memoryview]] | None:
        """Return (size, blocks of bytes) of the file ``name`` in the checkpoint's folder; None if it is missing."""
        ...


def read_tensor(checkpoint: Checkpoint, key: str, begin: int, view: memoryview) -> None:
    """Fill ``view`` with the bytes of the plain tensor ``key`` from byte ``begin`` on.

    Beyond the end of the tensor, ``view`` is filled with zeros.
    """
    info = checkpoint[key]
    assert info.storage is not None  # the caller has checked that the tensor is plain
    there = max(0, min(len(view), info.nbytes - begin))
    checkpoint.file(info).readinto(info.storage.offset + info.offset + begin, view[:there])
    view[there:] = bytes(len(view) - there)


class OldCheckpoint:
    """A checkpoint to which a patch is applied; also keeps the path or address with which it was opened."""

    def __init__(self, checkpoint: Checkpoint, path: str) -> None:
        self._checkpoint, self._path, self.name = checkpoint, path, escape(checkpoint.path)

    def nbytes(self, key: str) -> int | None:
        """Return the number of bytes of a tensor; None if it is missing, or is not stored as plain bytes."""
        info = self._checkpoint.get(key)
        return info.nbytes if info is not None and info.is_plain else None

    def read(self, key: str, begin: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of the tensor ``key`` from byte ``begin`` on.

        Beyond the end of the tensor, ``view`` is filled with zeros.
        """
        read_tensor(self._checkpoint, key, begin, view)

    def crc(self, key: str, nbytes: int) -> int | None:
        """Return None: no CRC-32 is known before the bytes are read."""
        return None

    def file(self, name: str) -> tuple[int, Iterator[bytes | memoryview]] | None:
        """Return (size, blocks of bytes) of the file ``name`` in the checkpoint's folder; None if it is missing."""
        source = open_source(self._path)
        if not isinstance(source, Folder) or name not in source.names():
            return None
        file = source.file(name)

        def blocks() -> Iterator[bytes | memoryview]:
            with closing(file):
                for begin in range(0, file.size, BLOCK):
                    yield file.read(begin, min(BLOCK, file.size - begin))

        return file.size, blocks()


class PatchedCheckpoint:
    """The result of applying a patch to its base, computed block by block as it is read.

    A patch can be applied to this result without writing the result to a file.
    """

    def __init__(self, base: Base, patch: PatchFile) -> None:
        self._base, self._patch = base, patch
        self.name = f"the result of {escape(patch.file.uri)}"
        self._tensors = patch.index.tensors
        self._starts = [list(accumulate((s.nbytes for s in file.segments), initial=0)) for file in patch.index.files]
        self._blocks: OrderedDict[tuple[int, int, int], Bytes] = OrderedDict()
        self._lock, self._local = threading.Lock(), threading.local()

    def nbytes(self, key: str) -> int | None:
        """Return the number of bytes of a tensor; None if it is missing."""
        return self._tensors[key].nbytes if key in self._tensors else None

    def crc(self, key: str, nbytes: int) -> int | None:
        """Return the CRC-32 that the patch contains for a tensor if the tensor has ``nbytes`` bytes; else None."""
        tensor = self._tensors[key]
        return tensor.crc if tensor.nbytes == nbytes else None

    def read(self, key: str, begin: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of the tensor ``key`` from byte ``begin`` on.

        Beyond the end of the tensor, ``view`` is filled with zeros.
        """
        tensor = self._tensors[key]
        there = max(0, min(len(view), tensor.nbytes - begin))
        starts, at, done = self._starts[tensor.file], tensor.offset + begin, 0
        while done < there:
            number = bisect_right(starts, at) - 1
            block, within = divmod(at - starts[number], BLOCK)
            values = self._block(tensor.file, number, block)[within:][: there - done]
            view[done : done + len(values)] = values.data
            done, at = done + len(values), at + len(values)
        view[there:] = bytes(len(view) - there)

    def file(self, name: str) -> tuple[int, Iterator[bytes | memoryview]] | None:
        """Return (size, blocks of bytes) of the file ``name`` in the checkpoint's folder; None if it is missing."""
        for number, one in enumerate(self._patch.index.files):
            if one.name == name:
                return one.size, (block for task in tasks(self._base, self._patch, number) for block in task())
        return None

    def _block(self, file: int, number: int, block: int) -> Bytes:
        """Return the bytes of a block; ``file``, ``number`` (of the segment) and ``block`` are indices.

        The blocks that were computed last are cached: a second patch, which is applied to this result, may need the
        same block for two of its own blocks.
        """
        place = (file, number, block)
        with self._lock:
            if place in self._blocks:
                self._blocks.move_to_end(place)
                return self._blocks[place]
        segment = self._patch.index.files[file].segments[number]
        made = made_block(self._base, self._patch, segment, self._patch.places[file][number], block, self._local)
        with self._lock:
            self._blocks[place] = made
            while len(self._blocks) > 2 * THREADS:
                self._blocks.popitem(last=False)
        return made


def made_block(
    base: Base, patch: PatchFile, segment: Segment, places: Sequence[int], number: int, local: threading.local
) -> Bytes:
    """Return the bytes of the block ``number`` of a segment whose kind is not "file".

    ``places`` are the offsets of the segment's encoded blocks in the patch; ``local`` keeps a decoder for each thread.
    """
    begin = number * BLOCK
    out = np.zeros(min(BLOCK, segment.nbytes - begin), np.uint8)
    if segment.key:
        base.read(segment.key, begin, out.data)
    if segment.kind != "same":
        if not hasattr(local, "decoder"):
            local.decoder = Decoder()
        decoder: Decoder = local.decoder
        try:
            right = _right_factor(patch, segment, places, local)
            decoder.decode(patch.block(places[number], segment.blocks[number]), out, right, begin)
        except FormatError as error:
            raise damaged(patch.file, "one of its blocks cannot be decoded") from error
    return out


def _right_factor(
    patch: PatchFile, segment: Segment, places: Sequence[int], local: threading.local
) -> RightFactor | None:
    """Return the right factor of a segment's changes; None if it has none.

    ``local`` caches a decoder, and the last right factor that it decoded, for each thread.
    """
    stored = segment.low_rank
    if stored is None:
        return None
    place, right = getattr(local, "right", (None, None))
    if place != places[-1]:
        raw = np.zeros(4 * stored.rank * stored.columns, np.uint8)
        local.decoder.decode(patch.block(places[-1], segment.blocks[-1]), raw)
        right = RightFactor(raw.view("<f4").reshape(stored.rank, stored.columns), stored.dtype)
        local.right = places[-1], right
    return right


def tasks(base: Base, patch: PatchFile, file: int) -> Iterator[Callable[[], Iterable[bytes | memoryview]]]:
    """Yield, for each block of a new file in order, a function that returns its bytes."""
    local = threading.local()
    for segment, places in zip(patch.index.files[file].segments, patch.places[file], strict=True):
        if segment.kind == "file":
            found = base.file(segment.key)
            if found is None or found[0] != segment.nbytes:
                raise not_the_base(base, patch, [segment.key])
            yield lambda blocks=found[1]: blocks  # type: ignore[misc]
            continue
        for number in range(segment.number):
            yield lambda one=segment, at=places, number=number: (  # type: ignore[misc]
                made_block(base, patch, one, at, number, local).data,
            )


def not_the_base(base: Base, patch: PatchFile, names: Sequence[str]) -> PlanError:
    """Return the error for a base that is not the checkpoint from which the patch was made.

    ``names`` are the tensors and files that are missing or different in the base.
    """
    differ = "is missing or different" if len(names) == 1 else "are missing or different"
    return PlanError(
        f"{base.name} is not the checkpoint that {escape(patch.file.uri)} was made from ({escape(patch.index.old)}): "
        f"{count(len(names), 'tensor or file', 'tensors or files')} {differ}: {listing(names)}.",
        hint="Give the checkpoint that the patch was made from.",
        details=names,
    )
