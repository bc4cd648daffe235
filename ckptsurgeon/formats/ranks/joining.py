"""Joins the state dicts of all ranks: distributed tensors from their parts, other tensors from the first rank."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.composition import reshape
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from ..base import limits
from ..base.header import naming
from ..base.rank_layout import is_buffer
from ..base.slice import TensorPiece, assembled
from ..torch.distributed import UNREAD, DistributedPart, MeshPart, ShardedPart
from ..torch.zero import StateFile

__all__ = ["RankJoiner", "equal_bytes", "not_compared"]


COMPARED, PIECES = 32 << 10, 16
"""The size of a piece and the number of pieces of a large tensor that are compared if it has no checksums.

The pieces are evenly spread.
"""
AT_ENDS = 256 << 10
"""Of a remote tensor, only this many bytes at the beginning and at the end are compared: each piece is a request."""


def equal_bytes(one: TensorInfo, other: TensorInfo, handles: Mapping[str, File] | None = None) -> bool | None:
    """Return whether two tensors have the same dtype, shape and bytes; None if the bytes cannot be compared.

    If the archives store CRC-32 checksums of both tensors, these are compared. Otherwise, bytes are read from
    ``handles``, the open files by ``Storage.file``: of a large tensor, only ``PIECES`` pieces are compared.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.numel == 0 or (one.place is not None and one.place == other.place):
        return True
    a, b = one.storage, other.storage
    if a is None or b is None:
        return None
    whole = (
        a.crc32 is not None
        and b.crc32 is not None
        and one.is_plain
        and other.is_plain
        and one.nbytes == a.nbytes == b.nbytes == other.nbytes
    )
    if whole:
        return a.crc32 == b.crc32
    if handles is None or not (one.is_plain and other.is_plain and a.file in handles and b.file in handles):
        return None
    is_remote = handles[a.file].remote or handles[b.file].remote
    length = min(one.nbytes, AT_ENDS if is_remote else COMPARED)
    pieces = min(2 if is_remote else PIECES, -(-one.nbytes // length))
    for at in ((one.nbytes - length) * piece // max(pieces - 1, 1) for piece in range(pieces)):
        places = ((a, one.offset + at), (b, other.offset + at))
        first, second = (handles[where.file].read(where.offset + offset, length) for where, offset in places)
        if first != second:
            return False
    return True


def not_compared(keys: Sequence[str]) -> Iterator[Note]:
    """Yield a note on tensors that should be equal on all ranks, but could not be compared (``keys``), if any."""
    if keys:
        of = f"{count(len(keys), 'tensor')} that should be equal on all ranks could not be compared"
        yield Note(NoteKind.REMARK, f"{of}; the tensor of the first rank is used: {listing(keys, where='')}")


@dataclass
class RankJoiner:
    """Joins the state dicts of the ranks; ``files`` has one file per rank, in the order of the ranks.

    The method ``tree`` sets four attributes. ``differing`` has the keys of tensors that are not split and should be
    equal on all ranks, but are not. ``unlike_replicas`` has the keys of distributed tensors of which several ranks have
    the same part, but with different values. ``unknown`` has the keys of tensors that could not be compared. ``joined``
    is the number of distributed tensors.
    """

    files: Sequence[StateFile]
    differing: list[str] = field(default_factory=list)
    unlike_replicas: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    joined: int = 0
    _nodes: int = 0
    _entries: int = 0
    _known: dict[Hashable, tuple[TensorInfo, Sequence[TensorPiece]]] = field(default_factory=dict)
    """The distributed tensors and their parts, by the place of the first part. Tied tensors have the same parts."""

    def tree(self) -> dict[Any, Any]:
        """Return the state dict, nested as it was saved; raises FormatError if the ranks do not fit together."""
        self._handles = {name: file for one in self.files for name, file in one.header.handles.items()}
        self._reach = [_reach(one.tree, len(self.files)) for one in self.files]
        return self._level({rank: one.tree for rank, one in enumerate(self.files)}, "", 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the tensors that differ between the ranks, or that could not be compared.

        Buffers may differ in a valid checkpoint: each rank has its own statistics. If some tensors are distributed, the
        others are taken for buffers. If parameters differ, the ranks were saved at different steps, or by different
        runs.
        """
        found = []
        if self.unlike_replicas:
            what = f"{count(len(self.unlike_replicas), 'tensor')} with copies of one part on several ranks that differ"
            said = f"{what}; the copy of the first rank is used: {listing(self.unlike_replicas, where='')}"
            found.append(Note(NoteKind.SPLIT_TENSORS, said))
        if self.differing:
            of = f"{count(len(self.differing), 'tensor')} that should be equal on all ranks differ"
            said = f"{of}; the tensor of the first rank is used: {listing(self.differing, where='')}"
            is_serious = not (self.joined or all(map(is_buffer, self.differing)))
            found.append(Note(NoteKind.SPLIT_TENSORS if is_serious else NoteKind.REMARK, said))
        return (*found, *not_compared(self.unknown))

    def _level(self, trees: Mapping[int, Mapping[Any, Any]], path: str, depth: int) -> dict[Any, Any]:
        self._nodes += len(trees)
        if depth > limits.TREE_DEPTH or self._nodes > limits.TREE_NODES:
            raise UnsafeError(
                "the state dicts of the ranks are nested too deeply, or have too many nested dicts.", rule="tree"
            )
        found: dict[Any, dict[int, Any]] = {}
        for rank, tree in trees.items():
            self._entries += len(tree)
            if self._entries > limits.RANK_PIECES:
                raise UnsafeError(
                    f"the files of the ranks have more entries than the limit of {limits.RANK_PIECES}.", rule="pieces"
                )
            for key, value in tree.items():
                found.setdefault(key, {})[rank] = value
        return {key: self._entry(values, f"{path}{key}", depth) for key, values in found.items()}

    def _entry(self, values: Mapping[int, Any], key: str, depth: int) -> Any:
        """Return the entry ``key`` of the joined state dict; ``values`` is {rank: its value} for ranks that have it.

        ``depth`` is the number of dicts around this entry.
        """
        own, first = next(iter(values.items()))
        other = next((rank for rank, value in values.items() if isinstance(value, TensorInfo)), own)
        if other != own and not isinstance(first, TensorInfo):
            raise self._error(own, f"{escape(key)} is not a tensor here, but is one on rank {other}.", "rank keys")
        if isinstance(first, Mapping):
            nested = {rank: value for rank, value in values.items() if isinstance(value, Mapping)}
            return self._level(nested, f"{key}.", depth + 1)
        if not isinstance(first, TensorInfo):
            return first
        infos = {rank: value for rank, value in values.items() if isinstance(value, TensorInfo)}
        self._check_alike(key, infos)
        parts = {rank: _part_of(info) for rank, info in infos.items()}
        if any(part is not None for part in parts.values()):
            return self._distributed(key, infos, parts)
        return self._once(key, infos)

    def _once(self, key: str, infos: Mapping[int, TensorInfo]) -> TensorInfo:
        """Return the tensor ``key``, which is not split, of the first rank that has it.

        ``infos`` is {rank: its tensor}. ``key`` is added to ``differing`` if the tensors differ, or to ``unknown`` if
        they cannot be compared. Raises FormatError if a rank that should have the tensor lacks it.
        """
        rank, first = next(iter(infos.items()))
        self._check_ranks(key, infos, self._reach[rank])
        equal = {equal_bytes(first, info, self._handles) for info in infos.values()}
        if False in equal:
            self.differing.append(key)
        elif None in equal:
            self.unknown.append(key)
        return first

    def _distributed(
        self, key: str, infos: Mapping[int, TensorInfo], parts: Mapping[int, DistributedPart | None]
    ) -> TensorInfo:
        """Return the tensor ``key``, joined from the parts of all ranks.

        ``infos`` is {rank: header of its tensor}. ``parts`` is {rank: its part}; the part is None if the tensor is not
        distributed on that rank. Raises FormatError if the parts do not fit together.
        """
        first, layout = next(iter(infos.values())), next(part.layout for part in parts.values() if part is not None)
        pieces: dict[tuple[int, ...], TensorPiece] = {}
        for rank, part in parts.items():
            if part is None or part.layout != layout:
                raise self._error(rank, f"{escape(key)} is split differently than on other ranks.", "rank part")
            if isinstance(part, MeshPart):
                self._check_ranks(key, infos, part.ranks)
                if rank not in part.ranks:
                    raise self._error(
                        rank,
                        f"{escape(key)} is split over ranks that do not include this one ({_some(part.ranks)}).",
                        "rank part",
                    )
            with naming(self.files[rank].file):
                for piece in part.pieces(first.shape, rank):
                    known = pieces.setdefault(piece.offsets, piece)
                    if known is not piece and equal_bytes(known.info, piece.info, self._handles) is False:
                        self.unlike_replicas += [key] if key not in self.unlike_replicas[-1:] else []
        self.joined += 1
        if first.numel == 0:
            return reshape(next(part.any for part in parts.values() if part is not None), first.shape)
        filled = [piece for piece in pieces.values() if piece.info.numel]
        place = filled[0].info.place if filled else None
        if place in self._known:
            same, others = self._known[place]
            if (same.dtype, same.shape) == (first.dtype, first.shape) and _are_aliases(others, filled):
                return same
        with naming(self.files[next(iter(infos))].file):
            info = assembled(key, first.dtype, first.shape, list(pieces.values()))
        if place is not None:
            self._known.setdefault(place, (info, filled))
        return info

    def _check_alike(self, key: str, infos: Mapping[int, TensorInfo]) -> None:
        """Raise FormatError if a rank's ``key`` cannot be read, or its dtype or shape is not that of the first rank."""
        first = next(iter(infos.values()))
        for rank, info in infos.items():
            if info.opaque.startswith(UNREAD):
                raise self._error(rank, f"{escape(key)} cannot be read: {info.opaque}.", "rank part")
            if (info.dtype, info.shape) != (first.dtype, first.shape):
                raise self._error(
                    rank,
                    f"{escape(key)} is {info.dtype} {info.shape}, but {first.dtype} {first.shape} on rank "
                    f"{next(iter(infos))}: the files are not from the same run.",
                    "rank shapes",
                )

    def _check_ranks(self, key: str, infos: Mapping[int, TensorInfo], wanted: frozenset[int]) -> None:
        """Raise FormatError if a rank in ``wanted`` lacks the tensor ``key``; ``infos`` has the ranks that have it."""
        if wanted <= infos.keys():
            return
        lacking = min(wanted - infos.keys())
        first = next(iter(infos))
        if lacking >= len(self.files):
            there = f"but there are files of only {len(self.files)}"
            said = f"{escape(key)} should be on {count(len(wanted), 'rank')}, including rank {lacking}, {there}."
            raise self._error(first, said, "ranks")
        raise self._error(lacking, f"it lacks {escape(key)}, which rank {first} has.", "rank keys")

    def _error(self, rank: int, message: str, rule: str) -> FormatError:
        return FormatError(f"{escape(self.files[rank].file.uri)}: {message}", rule=rule)


def _are_aliases(parts: Sequence[TensorPiece], others: Sequence[TensorPiece]) -> bool:
    """Return whether two tensors consist of the same stored parts at the same indices, as FSDP saves tied tensors."""
    places = [[(part.offsets, part.info.place) for part in some] for some in (parts, others)]
    return places[0] == places[1] and all(place is not None for _, place in places[0])


def _part_of(info: TensorInfo) -> DistributedPart | None:
    part = info.parts[0] if len(info.parts) == 1 else None
    return part if isinstance(part, (MeshPart, ShardedPart)) else None


def _reach(tree: Mapping[Any, Any], ranks: int) -> frozenset[int]:
    """Return the ranks that store the same tensors as the rank whose state dict is ``tree``.

    These are the ranks of the largest mesh in ``tree``, or all ``ranks`` if there is no mesh. With pipeline
    parallelism, ranks outside this mesh have other tensors.
    """
    meshes = [
        part.ranks
        for info in tree.values()
        if isinstance(info, TensorInfo) and isinstance(part := _part_of(info), MeshPart)
    ]
    return max(meshes, key=len, default=frozenset(range(ranks)))


def _some(ranks: frozenset[int]) -> str:
    return listing([str(rank) for rank in sorted(ranks)], 6, where="")
