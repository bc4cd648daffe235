"""Reads the DeviceMesh in a pickle: the mesh of ranks across which a DTensor is split.

Follows ``torch/distributed/device_mesh.py`` and ``_mesh_layout.py`` (torch 2.2 to 2.13).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from ...tensors.info import TensorInfo
from ..base import limits
from ..base.untrusted import CopyBudget
from ..pickle.values import GlobalName, OpaqueResult, brief

__all__ = ["RankMesh", "UnknownDistributedError", "attributes_of", "read_mesh"]

DIMENSIONS = 8
"""The most dimensions of a mesh; runs use at most five."""


class UnknownDistributedError(ValueError):
    """Raised for a distributed tensor whose parts cannot be joined; the message is the reason."""


@dataclass(frozen=True, eq=False)
class RankMesh:
    """A mesh of ranks. ``sizes`` are its dimensions, and ``places`` is {rank: its index in the flattened mesh}."""

    sizes: tuple[int, ...]
    places: Mapping[int, int]

    def coordinate(self, rank: int, dim: int) -> int:
        """Return the coordinate of a rank along a dimension of the mesh."""
        return self.places[rank] // prod(self.sizes[dim + 1 :]) % self.sizes[dim]


def attributes_of(value: Any, kind: str) -> Mapping[Any, Any]:
    """Return the attributes of ``value``, an object of the class ``kind``.

    Raises UnknownDistributedError if it is an object of another class.
    """
    made = value.name if isinstance(value, OpaqueResult) else None
    if not isinstance(value, OpaqueResult) or not isinstance(made, GlobalName) or made.name != kind:
        raise UnknownDistributedError(f"there is {brief(value)} instead of a {kind}")
    return value.attributes()


def read_mesh(value: Any, budget: CopyBudget) -> RankMesh:
    """Return the mesh of ranks in a pickled DeviceMesh; both pickle layouts are read.

    Up to torch 2.9, a DeviceMesh has the ranks as a tensor and as a list. Later versions have strides into a list of
    all ranks. Raises UnknownDistributedError if the mesh cannot be read.
    """
    state = attributes_of(value, "DeviceMesh")
    tensor = state.get("mesh")
    if isinstance(tensor, TensorInfo):
        sizes, ranks = tensor.shape, state.get("_flatten_mesh_list")
    else:
        sizes, ranks = _laid_out(state, budget)
    if not 0 < len(sizes) <= DIMENSIONS or not isinstance(ranks, (tuple, list)) or len(ranks) != prod(sizes):
        raise UnknownDistributedError("the ranks of the mesh are not known")
    budget.spend(len(ranks))
    if not all(type(rank) is int and 0 <= rank < limits.RANKS for rank in ranks) or len(set(ranks)) != len(ranks):
        raise UnknownDistributedError(f"the ranks of the mesh are not distinct numbers below {limits.RANKS}")
    return RankMesh(sizes, _places(tuple(ranks)))


@lru_cache(maxsize=64)  # the files of a thousand ranks all have the same mesh
def _places(ranks: tuple[int, ...]) -> Mapping[int, int]:
    return {rank: place for place, rank in enumerate(ranks)}


def _laid_out(state: Mapping[Any, Any], budget: CopyBudget) -> tuple[tuple[int, ...], list[int]]:
    """Return the sizes and ranks of a mesh that is stored as sizes and strides (``torch/distributed/_mesh_layout.py``).

    Sizes and strides give positions in the list of all ranks. A mesh may be one of several equal parts of a larger
    mesh: then the part with the rank that saved the file is returned. Raises UnknownDistributedError if the sizes and
    strides are not valid.
    """
    axes, every = _axes(attributes_of(state.get("_layout"), "_MeshLayout")), state.get("_flatten_rank_map")
    sizes = tuple(size for size, _ in axes)
    if not isinstance(every, (tuple, list)) or not 0 < prod(sizes) <= len(every) <= limits.RANKS:
        raise UnknownDistributedError(f"the mesh does not have 1 to {limits.RANKS} ranks")
    budget.spend(prod(sizes))
    places = [0]
    for size, stride in axes:
        places = [place + step * stride for place in places for step in range(size)]
    offset = 0
    rank = state.get("_rank")
    if len(places) < len(every) and type(rank) is int and rank in every:
        offset = _offset(every.index(rank), axes)
    if places[-1] + offset >= len(every) or min(places) < 0:
        raise UnknownDistributedError("the strides of the mesh reach beyond its ranks")
    return sizes, [every[place + offset] for place in places]


def _offset(place: int, axes: Sequence[tuple[int, int]]) -> int:
    """Return the lowest flat index of the sub-mesh that contains the flat index ``place`` of the whole mesh.

    ``axes`` has the (size, stride) of each dimension of the sub-mesh; strides count indices of the whole mesh.
    """
    for size, stride in sorted(axes, key=lambda axis: -axis[1]):
        place -= place // stride % size * stride if stride else 0
    return place


def _axes(layout: Mapping[Any, Any]) -> list[tuple[int, int]]:
    """Return (size, stride) of each dimension of a mesh; raises UnknownDistributedError if they are invalid."""
    axes: Any = layout.get("axes")
    pairs: list[tuple[Any, Any]]
    if isinstance(axes, tuple):
        flat = [attributes_of(axis, "_FlatLayout") for axis in axes[: DIMENSIONS + 1]]
        pairs = [(one.get("shape"), one.get("stride")) for one in flat]
    else:
        shape, stride = layout.get("shape"), layout.get("stride")
        shape, stride = (one if isinstance(one, tuple) else (one,) for one in (shape, stride))
        pairs = list(zip(shape, stride, strict=True)) if len(shape) == len(stride) <= DIMENSIONS else []
    made = [(size[0], step[0]) if _are_single(size, step) else (size, step) for size, step in pairs]
    if not made or not all(type(n) is int and 0 <= n <= limits.RANKS for pair in made for n in pair):
        raise UnknownDistributedError("the mesh is not a grid")
    return made


def _are_single(size: Any, step: Any) -> bool:
    return isinstance(size, tuple) and isinstance(step, tuple) and len(size) == len(step) == 1
