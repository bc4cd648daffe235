"""Reads DTensor and ShardedTensor in pickles: each rank of a training run saved its own part of such a tensor.

A DTensor contains the part of one rank, and says how the tensor is split across a mesh of ranks. Follows
``torch/distributed/tensor/{placement_types,_dtensor_spec}.py`` and ``torch/distributed/device_mesh.py`` (torch 2.2 to
2.13), and ``torch/distributed/_shard/sharded_tensor/api.py``. No object of these classes is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from ...errors import FormatError
from ...tensors.info import TensorInfo
from ..base import limits
from ..base.slice import TensorPiece
from ..base.untrusted import CopyBudget, check_sizes
from ..pickle.values import GlobalName, OpaqueResult, brief
from .rank_mesh import RankMesh, UnknownDistributedError, attributes_of, read_mesh

__all__ = ["UNREAD", "DistributedPart", "MeshPart", "ShardedPart", "part_reader"]

PART = "it is only one rank's part of a tensor; pass the folder with the files of all ranks"
"""The reason why the values of a distributed tensor cannot be read from the file of one rank."""
SWAPPED = (
    "Were files of ranks renamed or swapped, or copied from another run? The number in the name of a file is its rank: "
    "copy the files of all ranks again, under their own names."
)
UNREAD = ("it is a DTensor ", "it is a ShardedTensor ")
"""Beginnings of the reasons why a distributed tensor cannot be read at all."""


@dataclass(frozen=True, eq=False)
class MeshPart:
    """One rank's part of a DTensor; ``local`` is the part, ``mesh`` the mesh of ranks that the tensor is split across.

    ``cuts`` has, for each dimension of the tensor, the dimensions of the mesh that split it, in the order of splitting.
    """

    mesh: RankMesh
    cuts: tuple[tuple[int, ...], ...]
    local: TensorInfo

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks that hold parts of the tensor."""
        return frozenset(self.mesh.places)

    @property
    def any(self) -> TensorInfo:
        """One stored tensor of this part; it may be empty."""
        return self.local

    @property
    def layout(self) -> object:
        """A value that is equal for all parts of the same tensor."""
        return self.mesh.sizes, self.cuts

    def pieces(self, shape: tuple[int, ...], rank: int) -> list[TensorPiece]:
        """Return a list with the piece of ``rank``, or [] if the rank has no elements of the tensor.

        ``shape`` is the shape of the whole tensor. Raises FormatError if the piece has an unexpected shape.
        """
        found = [self._interval(size, cuts, rank) for size, cuts in zip(shape, self.cuts, strict=True)]
        wanted = tuple(size for _, size in found)
        if self.local.shape != wanted and (0 not in wanted or self.local.numel):
            raise FormatError(
                f"rank {rank} has a part of shape {self.local.shape}, but its part of a tensor of shape {shape} would "
                f"be {wanted}.",
                hint=SWAPPED,
                rule="rank part",
            )
        return [TensorPiece(tuple(begin for begin, _ in found), self.local)] if 0 not in wanted else []

    def _interval(self, size: int, cuts: Sequence[int], rank: int) -> tuple[int, int]:
        """Return (begin, size) of the rank's part of a dimension; each of ``cuts`` splits it like ``torch.chunk``."""
        begin = 0
        for dim in cuts:
            chunk = -(-size // self.mesh.sizes[dim])
            at = min(self.mesh.coordinate(rank, dim) * chunk, size)
            begin, size = begin + at, min(chunk, size - at)
        return begin, size


@dataclass(frozen=True, eq=False)
class ShardedPart:
    """One rank's pieces of a ShardedTensor; each piece has its own offsets."""

    local: tuple[TensorPiece, ...]
    ranks: frozenset[int] = frozenset()
    layout: object = "ShardedTensor"

    @property
    def any(self) -> TensorInfo:
        """A stored tensor of this part, which may be empty; if the rank has no piece, a TensorInfo without values."""
        return self.local[0].info if self.local else TensorInfo("float32", (0,), opaque="it is empty")

    def pieces(self, shape: tuple[int, ...], rank: int) -> list[TensorPiece]:
        """Return the pieces that are not empty; raises FormatError if a piece is outside a tensor of this ``shape``."""
        for piece in self.local:
            ends = [begin + size for begin, size in zip(piece.offsets, piece.info.shape, strict=False)]
            if len(ends) != len(shape) or any(end > size for end, size in zip(ends, shape, strict=False)):
                raise FormatError(
                    f"rank {rank} has a piece of shape {piece.info.shape} at {piece.offsets}, which does not fit into "
                    f"a tensor of shape {shape}.",
                    hint=SWAPPED,
                    rule="rank part",
                )
        return [piece for piece in self.local if piece.info.numel]


DistributedPart = MeshPart | ShardedPart


def part_reader(budget: CopyBudget) -> Callable[[Any, TensorInfo, Any], TensorInfo | None]:
    """Return a function that reads the distributed tensors of one pickle; ``budget`` limits the sizes of their meshes.

    The arguments of the function are the name of a class, the header of the whole tensor, and the state of the object.
    It returns a header whose only part is a MeshPart or ShardedPart. If the local tensor is already the whole tensor,
    the local tensor is returned. For other classes, None is returned.
    """
    meshes: dict[int, tuple[OpaqueResult, RankMesh]] = {}

    def mesh_of(value: Any) -> RankMesh:
        known = meshes.get(id(value))
        if known is None:
            known = meshes[id(value)] = (value, read_mesh(value, budget))
        return known[1]

    def read(kind: Any, whole: TensorInfo, state: Any) -> TensorInfo | None:
        name = kind.name if isinstance(kind, GlobalName) and kind.module.startswith("torch.distributed.") else ""
        if name not in ("DTensor", "ShardedTensor"):
            return None
        try:
            part = _mesh_part(whole, state, mesh_of, budget) if name == "DTensor" else _sharded_part(whole, state)
        except UnknownDistributedError as error:
            return TensorInfo(whole.dtype, whole.shape, opaque=f"it is a {name} that ckpt cannot join ({error})")
        if isinstance(part, MeshPart) and part.local.shape == whole.shape and _is_whole(part):
            return part.local
        return TensorInfo(whole.dtype, whole.shape, opaque=PART, parts=(part,))

    return read


def _is_whole(part: MeshPart) -> bool:
    return all(part.mesh.sizes[dim] == 1 for cuts in part.cuts for dim in cuts)


def _mesh_part(whole: TensorInfo, state: Any, mesh_of: Callable[[Any], RankMesh], budget: CopyBudget) -> MeshPart:
    states = [one for one in reversed(state if isinstance(state, tuple) else (state,)) if isinstance(one, dict)]
    budget.spend(len(states))  # all tensors of a file may share these dicts: they are not merged
    spec, local = (next((one[name] for one in states if name in one), None) for name in ("_spec", "_local_tensor"))
    spec = attributes_of(spec, "DTensorSpec")
    if not isinstance(local, TensorInfo) or local.dtype != whole.dtype:
        raise UnknownDistributedError(f"the local part is {brief(local)}, not a tensor of the same dtype")
    mesh = mesh_of(spec.get("mesh"))
    budget.spend(len(mesh.sizes) ** 2)
    return MeshPart(mesh, _cuts(whole.shape, mesh.sizes, spec, budget), local)


def _cuts(
    shape: tuple[int, ...], mesh: tuple[int, ...], spec: Mapping[Any, Any], budget: CopyBudget
) -> tuple[tuple[int, ...], ...]:
    """Return, for each dimension of the tensor, the dimensions of the mesh that split it, in the order of splitting.

    ``mesh`` has the sizes of the mesh, ``spec`` the attributes of the DTensorSpec. Usually an earlier mesh dimension
    splits first. If its placement is ``_StridedShard``, it splits after some of the later mesh dimensions: those whose
    sizes multiply to its ``split_factor``. torch interprets such a placement in two ways. Raises
    UnknownDistributedError unless both ways give the same parts (``_is_certain``).
    """
    placements = spec.get("placements")
    if not isinstance(placements, (tuple, list)) or len(placements) != len(mesh):
        raise UnknownDistributedError("the placements do not fit the mesh")
    cuts: list[list[int]] = [[] for _ in shape]
    for at, (placement, size) in reversed(list(enumerate(zip(placements, mesh, strict=True)))):
        dim, before = _placed(placement, len(shape))
        if dim is None:
            continue
        later = cuts[dim]
        budget.spend(min(before * size, limits.RANKS) if before != 1 else 1)
        if before != 1 and not _is_certain(shape[dim], before, size, after=prod(mesh[one] for one in later) // before):
            raise UnknownDistributedError("torch interprets the strided shards in two different ways")
        place = next((n for n in range(len(later) + 1) if prod(mesh[one] for one in later[:n]) == before), None)
        if place is None:
            raise UnknownDistributedError(f"the split factor {before} does not fit the mesh")
        later.insert(place, at)
    return tuple(map(tuple, _in_order(cuts, spec.get("shard_order"))))


@lru_cache(maxsize=1024)
def _is_certain(size: int, before: int, ranks: int, *, after: int) -> bool:
    """Return whether torch's two interpretations of a strided shard give the same parts of a dimension of ``size``.

    In both interpretations, tensor parallelism splits the dimension into ``before`` parts, and FSDP2 splits each of
    these parts into ``ranks`` parts. In the first interpretation, these are the final parts. In the second
    interpretation, ``_StridedShard._split_tensor`` joins all parts of one rank of FSDP2, and ``Shard`` then splits the
    joined part into ``before`` parts again. ``after`` is the number of parts of any further splits.
    """
    if size % (before * ranks * max(after, 1)) == 0:
        return True
    if after > 1 or before * ranks > limits.RANKS:
        return False
    parts = [_chunks(part, ranks) for part in _chunks(size, before)]
    joined = (_chunks(sum(part[rank] for part in parts), before) for rank in range(ranks))
    return all(found == [part[rank] for part in parts] for rank, found in enumerate(joined))


def _chunks(size: int, number: int) -> list[int]:
    """Return the sizes of ``number`` parts as ``torch.chunk`` makes them; the last parts may have size 0."""
    chunk = -(-size // number)
    return [max(0, min(chunk, size - at * chunk)) for at in range(number)]


def _placed(placement: Any, dims: int) -> tuple[int | None, int]:
    """Return (dimension that a placement splits, number of parts before this split); (None, 1) for ``Replicate``.

    Raises UnknownDistributedError for other placements, such as ``Partial``.
    """
    made = placement.name if isinstance(placement, OpaqueResult) else None
    kind = made.name if isinstance(made, GlobalName) else ""
    if kind == "Replicate":
        return None, 1
    if kind not in ("Shard", "_StridedShard"):
        raise UnknownDistributedError(f"a placement is {brief(placement)}, not Shard or Replicate")
    state = attributes_of(placement, kind)
    dim, before = state.get("dim"), state.get("split_factor") if kind == "_StridedShard" else 1
    if type(before) is not int or before < 1:
        raise UnknownDistributedError(f"a placement has the split_factor {brief(before)}, which must be 1 or more")
    if type(dim) is not int or not -dims <= dim < dims:
        raise UnknownDistributedError(f"the tensor has {dims} dimensions, but is split along dimension {brief(dim)}")
    return dim % dims, before


def _in_order(cuts: Sequence[Sequence[int]], order: Any) -> Iterator[Sequence[int]]:
    """Yield the cuts of each dimension in the order that ``order`` states; if it states none, in their present order.

    ``order`` is the tensor's ``shard_order``, which torch stores since version 2.10. Raises UnknownDistributedError if
    it is not valid, or contradicts ``cuts``.
    """
    given: dict[int, Any] = {}
    for entry in order if isinstance(order, tuple) else ():
        args = entry.args if isinstance(entry, OpaqueResult) else entry
        if isinstance(args, tuple) and len(args) == 2 and type(args[0]) is int:
            given[args[0]] = args[1]
    for dim, found in enumerate(cuts):
        said = given.get(dim, found)
        if not isinstance(said, (tuple, list)) or not all(type(one) is int for one in said):
            raise UnknownDistributedError(f"shard_order is not valid for dimension {dim}")
        if sorted(said) != sorted(found) or (list(found) != sorted(found) and list(said) != list(found)):
            raise UnknownDistributedError("the placements contradict shard_order")
        yield said


_PIECES = 64
"""The most pieces of a ShardedTensor in one process; torch makes one."""


def _sharded_part(whole: TensorInfo, state: Any) -> ShardedPart:
    """Return the pieces of a ShardedTensor; its state begins with the list of pieces, which have offsets and sizes.

    ``whole`` is the header of the whole tensor. Raises UnknownDistributedError if a piece does not fit it.
    """
    shards = state[0] if isinstance(state, tuple) and len(state) == 5 else None
    if not isinstance(shards, list) or len(shards) > _PIECES:
        raise UnknownDistributedError(f"its state does not begin with a list of at most {_PIECES} pieces")
    pieces = []
    for shard in shards:
        one = attributes_of(shard, "Shard")
        said, info = attributes_of(one.get("metadata"), "ShardMetadata").get("shard_offsets"), one.get("tensor")
        offsets = tuple(said) if isinstance(said, (list, tuple)) and len(said) <= limits.DIMENSIONS else ()
        check_sizes(offsets, "offset")
        if not isinstance(info, TensorInfo) or info.dtype != whole.dtype or len(info.shape) != len(whole.shape):
            raise UnknownDistributedError(f"a piece is {brief(info)}, which does not fit the tensor")
        pieces.append(TensorPiece(offsets, info))
    return ShardedPart(tuple(pieces))
