"""Reads and writes folders with one safetensors file per rank of tensor parallelism, and ``ranks.json``.

The files have the names of vLLM's sharded state (``vllm/model_executor/model_loader/sharded_state_loader.py``):
``model-rank-0-part-0.safetensors``. ``ranks.json`` has the axis of each split tensor; all other tensors are whole on
every rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import FormatError, OutputError, SourceError
from ..storage.read.base import File, Folder, Source
from ..tensors.composition import join
from ..tensors.info import TensorInfo
from ..util.text import count, escape, listing
from ._open import read_header
from ._safetensors_layout import SafetensorsWriter
from .base import limits
from .base.format_table import RANK_INDEX, rank_file, tensor_rank
from .base.header import ExtraEntries, FilePrint, Header, IndexFile, OutputLayout, OutTensor
from .base.rank_layout import RankShares, SpreadLayout, part_of
from .base.sharded_writer import folder_frame, folder_recipe
from .base.untrusted import check_elements, parse_json

__all__ = ["FORMAT"]


class _Files:
    """Gives the names of the files of the ranks."""

    def names(self, number: int) -> list[str]:
        """Return the names of the files of ``number`` ranks."""
        return [rank_file(rank) for rank in range(number)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return {}: ``_Writer.index_of`` makes the index, since it needs the axes."""
        return {}

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return those of ``present``, the names of a folder's files, that belong to a checkpoint of this format."""
        found = set(filter(_is_rank_file, present))
        return found | ({RANK_INDEX} & set(present)) if found else set()


class _Writer:
    """Writes one safetensors file per rank; the parts of a tensor have equal sizes."""

    name = "tp"
    sharding = _Files()
    suffixes: tuple[str, ...] = ()
    carries = False
    shares = False
    most = limits.RANK_PIECES
    dtypes = SafetensorsWriter.dtypes

    def axis_of(self, tensor: OutTensor) -> int | None:
        """Return None: only the user knows which layers are split."""
        return None

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> OutputLayout:
        """Return the layout of a file for one rank."""
        return SafetensorsWriter().layout(tensors, metadata, ())

    def spread(self, tensors: Sequence[OutTensor], metadata: Mapping[str, str], shares: RankShares) -> SpreadLayout:
        """Return the layout of all files; raises OutputError if the ranks would get parts of different sizes."""
        for tensor in tensors:
            axis = shares.axes.get(tensor.key)
            if axis is not None and tensor.shape[axis] % shares.ranks:
                raise OutputError(
                    f"{escape(tensor.key)} of shape {tensor.shape} cannot be split into {shares.ranks} equal parts "
                    f"along axis {axis}.",
                    hint="Write another number of ranks, or keep the tensor whole: --axis KEY=none.",
                )
        parts = [[part_of(tensor, shares, rank) for tensor in tensors] for rank in range(shares.ranks)]
        files = {rank_file(rank): self.layout(part, metadata, ()) for rank, part in enumerate(parts)}
        return SpreadLayout(files, tensors, shares)

    def index_of(self, shares: RankShares) -> Mapping[str, IndexFile]:
        """Return the name ``ranks.json`` and a function that returns the bytes of this file."""
        text = json.dumps({"ranks": shares.ranks, "axes": dict(shares.axes)}, indent=2, sort_keys=True) + "\n"
        return {RANK_INDEX: lambda _: text.encode("utf-8", "surrogatepass")}


class _TensorParallel:
    name = "tensor parallel"
    magic: tuple[bytes, ...] = ()
    writer = _Writer()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has ``ranks.json`` and the file of a rank."""
        if not isinstance(source, Folder):
            return False
        names = source.names()
        return RANK_INDEX in names and any(map(_is_rank_file, names))

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all ranks; raises FormatError if the files do not fit together."""
        assert isinstance(source, Folder)
        index = source.file(RANK_INDEX)
        handles: dict[str, File] = {RANK_INDEX: index}
        try:
            raw, ranks, axes = _read_index(index)
            headers = [_header(source, rank_file(rank), handles) for rank in range(ranks)]
            tree = _joined(source, [header.tree for header in headers], axes, handles)
        except BaseException:
            for file in handles.values():
                file.close()
            raise
        digest = hashlib.sha256(raw).hexdigest()
        frames = {rank_file(rank): header.frame for rank, header in enumerate(headers)}
        return Header(
            format=self.name,
            tree=tree,
            files=(FilePrint.of(index, digest, RANK_INDEX), *(file for header in headers for file in header.files)),
            handles=handles,
            metadata=headers[0].metadata,
            recipe=folder_recipe(source),
            notes=(f"read as one model: the files of {count(ranks, 'rank')}",),
            frame=lambda: folder_frame(
                source, {RANK_INDEX: digest, **{name: frame() for name, frame in frames.items()}}
            ),
        )


def _is_rank_file(name: str) -> bool:
    rank = tensor_rank(name)
    return rank is not None and name == rank_file(rank)


def _read_index(file: File) -> tuple[bytes, int, dict[str, int]]:
    """Return the bytes of ``ranks.json``, the number of ranks, and the axis of each tensor that is split.

    Raises FormatError if the file is not valid.
    """
    if file.size > limits.INDEX_BYTES:
        raise FormatError(f"{escape(file.uri)} is too large to be an index.", rule="index size")
    raw = file.read(0, file.size)
    try:
        found: Any = parse_json(raw)
    except ValueError as error:
        said = f"{escape(file.uri)} is not valid JSON: {error}."
        raise FormatError(said, hint="Correct this file, or fetch or save it again.", rule="index") from None
    ranks, axes = (found.get("ranks"), found.get("axes")) if isinstance(found, dict) else (None, None)
    if type(ranks) is not int or not 1 <= ranks <= limits.RANKS or not isinstance(axes, dict):
        raise FormatError(
            f"{escape(file.uri)} must contain ranks, a number from 1 to {limits.RANKS}, and axes, a JSON object.",
            rule="index",
        )
    if not all(type(axis) is int and 0 <= axis < limits.DIMENSIONS for axis in axes.values()):
        raise FormatError(
            f"{escape(file.uri)} has an axis that is not an integer from 0 to {limits.DIMENSIONS - 1}.", rule="index"
        )
    return raw, ranks, axes


def _header(folder: Folder, name: str, handles: dict[str, File]) -> Header:
    try:
        file = handles[name] = folder.file(name)
    except SourceError as error:
        raise FormatError(
            f"the file of one of the ranks in {RANK_INDEX} cannot be read: {error.message}",
            hint="Fetch or save the files of all ranks again.",
            rule="ranks",
        ) from error
    header = read_header(file, name)
    if not isinstance(header.tree, Mapping) or not all(isinstance(one, TensorInfo) for one in header.tree.values()):
        raise FormatError(f"{escape(file.uri)} has entries that are not tensors.", rule="rank state")
    return header


def _joined(
    folder: Folder, trees: Sequence[Mapping[str, TensorInfo]], axes: Mapping[str, int], handles: Mapping[str, File]
) -> dict[str, Any]:
    """Return the whole tensors, joined from the tensors of all ranks.

    ``trees`` has the tensors of each rank, ``axes`` the axis of each tensor that is split. Raises FormatError if a rank
    lacks a tensor, if shapes do not fit, or if ``equal_bytes`` finds that a tensor that is not split differs.
    """
    from .ranks.joining import equal_bytes

    if len(trees) * len(trees[0]) > limits.RANK_PIECES:
        raise FormatError(f"{escape(folder.uri)} has more than {limits.RANK_PIECES} parts of tensors.", rule="pieces")
    for rank, tree in enumerate(trees):
        odd = sorted(tree.keys() ^ trees[0].keys())
        if odd:
            raise FormatError(
                f"{escape(folder.uri)}: {rank_file(rank)} and {rank_file(0)} do not have the same tensors: "
                f"{listing(odd)}.",
                details=odd,
                rule="rank keys",
            )
    lacking = [key for key in axes if key not in trees[0]]
    if lacking:
        said = f"{escape(folder.uri)}: the files of the ranks lack {listing(lacking)}, which {RANK_INDEX} lists."
        raise FormatError(said, rule="rank keys")
    made: dict[str, Any] = {}
    for key, first in trees[0].items():
        parts, axis = [tree[key] for tree in trees], axes.get(key)
        if axis is not None and axis >= len(first.shape):
            raise FormatError(f"{escape(folder.uri)}: {escape(key)} has no axis {axis}.", rule="index")
        for rank, part in enumerate(parts):
            if (part.dtype, _but(axis, part.shape)) != (first.dtype, _but(axis, first.shape)):
                raise FormatError(
                    f"{escape(folder.uri)}: {escape(key)} in {rank_file(rank)} is {part.dtype} {part.shape}, but "
                    f"{first.dtype} {first.shape} in {rank_file(0)}.",
                    rule="rank shapes",
                )
            if axis is None and equal_bytes(first, part, handles) is False:
                raise FormatError(
                    f"{escape(folder.uri)}: {escape(key)}, which is not split according to {RANK_INDEX}, has other "
                    f"values in {rank_file(rank)} than in {rank_file(0)}.",
                    rule="rank values",
                )
        made[key] = first if axis is None else join(parts, axis)
        check_elements(made[key].shape)
    return made


def _but(axis: int | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], -1, *shape[axis + 1 :])


FORMAT = _TensorParallel()
