"""Lays out an output whose tensors are split across the files of several ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Protocol

from ...tensors.dtypes import DTYPES
from .header import IndexFile, OutputLayout, OutTensor, Writer

__all__ = ["RankShares", "RankWriter", "SpreadLayout", "chunks", "is_buffer", "part_of"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids")
"""Names of buffers, without the name of their module: FSDP splits only parameters, so every rank has whole buffers."""


def is_buffer(key: str) -> bool:
    """Return whether ``key`` is a common name of a buffer, such as ``running_mean``."""
    return key.rpartition(".")[2] in _BUFFERS


@dataclass(frozen=True)
class RankShares:
    """How tensors are split across ``ranks`` ranks: ``axes`` is {key of a split tensor: axis}.

    A tensor that is not in ``axes`` is whole on every rank. ``mesh`` has the device type of the ranks and the name of
    the dimension of their mesh.
    """

    ranks: int
    axes: Mapping[str, int]
    mesh: tuple[str, str] = ("cuda", "fsdp")


class RankWriter(Writer, Protocol):
    """The interface of a writer that writes a folder with one file per rank."""

    def axis_of(self, tensor: OutTensor) -> int | None:
        """Return the default axis along which a tensor is split; None if it is whole on every rank."""
        ...

    def spread(self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], shares: RankShares) -> SpreadLayout:
        """Return the layout of all files; raises OutputError if a tensor cannot be split across the ranks."""
        ...

    def index_of(self, shares: RankShares) -> Mapping[str, IndexFile]:
        """Return {file name: function that returns the bytes} of the files without tensors, such as an index."""
        ...


def chunks(size: int, ranks: int) -> list[int]:
    """Return how many elements each rank gets if ``torch.chunk`` splits ``size`` elements; 0 if it gets none."""
    chunk = -(-size // ranks)
    return [max(0, min(chunk, size - rank * chunk)) for rank in range(ranks)]


def part_of(tensor: OutTensor, shares: RankShares, rank: int) -> OutTensor:
    """Return an OutTensor for the part of ``tensor`` that the rank ``rank`` stores."""
    axis = shares.axes.get(tensor.key)
    if axis is None:
        return tensor._replace(alias_of="")
    shape = (*tensor.shape[:axis], chunks(tensor.shape[axis], shares.ranks)[rank], *tensor.shape[axis + 1 :])
    return OutTensor(tensor.key, tensor.dtype, shape, prod(shape) * DTYPES[tensor.dtype].bits // 8)


@dataclass(frozen=True)
class _Cut:
    """How the bytes of one tensor are split: they form rows, and each row consists of one run of bytes per rank.

    ``row`` is the size of a row in bytes. ``begins`` and ``sizes`` have, for each rank, the offset of its run in a row
    and the size of the run, in bytes; both are empty if every rank has the whole tensor.
    """

    key: str
    row: int = 0
    begins: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass
class SpreadLayout:
    """The layout of the files of all ranks, with the interface of the layout of a single file.

    ``slots`` has the whole tensors one after another, as if they were in one file. ``files`` has the real layout of
    each rank's file, with parts of tensors. ``constants`` has {file name: {key: bytes}} of further tensors that a
    format adds to each file, such as a tensor with the numbers of the ranks. ``aliases`` maps the keys of tied tensors
    that are not in ``tensors`` to the keys of the tensors whose bytes they share.
    """

    files: Mapping[str, OutputLayout]
    tensors: Sequence[OutTensor]
    shares: RankShares
    constants: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = list(accumulate((tensor.nbytes for tensor in self.tensors), initial=0))
        slots = {tensor.key: (begin, tensor.nbytes) for tensor, begin in zip(self.tensors, ends, strict=False)}
        self.slots: Mapping[str, tuple[int, int]] = slots | {key: slots[own] for key, own in self.aliases.items()}
        self._begins = ends[:-1]
        self._cuts = [self._cut(tensor) for tensor in self.tensors]
        self._names = list(self.files)
        self.size = sum(layout.size for layout in self.files.values())

    def _cut(self, tensor: OutTensor) -> _Cut:
        axis = self.shares.axes.get(tensor.key)
        if axis is None or not tensor.nbytes:
            return _Cut(tensor.key)
        inner = prod(tensor.shape[axis + 1 :]) * DTYPES[tensor.dtype].bits // 8
        sizes = [size * inner for size in chunks(tensor.shape[axis], self.shares.ranks)]
        return _Cut(tensor.key, sum(sizes), tuple(accumulate(sizes, initial=0))[:-1], tuple(sizes))

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield nothing: the bytes outside the tensors come from the layouts of the single files, in ``files``."""
        return iter(())

    def targets(self, offset: int, data: memoryview) -> Iterator[tuple[str, int, bytes | memoryview]]:
        """Yield (file name, offset in this file, bytes) to write for ``data``; it begins at ``offset`` in ``slots``."""
        number = bisect_right(self._begins, offset) - 1
        while data:
            tensor, cut, at = self.tensors[number], self._cuts[number], offset - self._begins[number]
            part = data[: tensor.nbytes - at]
            yield from self._parts(cut, at, part)
            offset, data, number = offset + len(part), data[len(part) :], number + 1

    def _parts(self, cut: _Cut, at: int, data: memoryview) -> Iterator[tuple[str, int, bytes | memoryview]]:
        """Yield (file name, offset in this file, bytes) to write for ``data``: bytes of one tensor from byte ``at`` on.

        Each rank gets a single run of bytes in its file.
        """
        names = self._names
        if not cut.sizes:
            yield from ((name, self.files[name].slots[cut.key][0] + at, data) for name in names if data)
            return
        found: dict[int, tuple[int, list[memoryview]]] = {}
        done = 0
        while done < len(data):
            row, within = divmod(at + done, cut.row)
            rank = bisect_right(cut.begins, within) - 1
            begin = within - cut.begins[rank]
            piece = data[done : done + cut.sizes[rank] - begin]
            found.setdefault(rank, (row * cut.sizes[rank] + begin, []))[1].append(piece)
            done += len(piece)
        for rank, (begin, pieces) in found.items():
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            yield names[rank], self.files[names[rank]].slots[cut.key][0] + begin, whole
