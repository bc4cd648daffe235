"""Finds the axes of a network, as built from its configuration, in the tensors of its checkpoint.

The tensors differ if a library renames, stacks or joins them when it loads them, as transformers does with experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...errors import PlanError
from ...tensors.info import Concatenated, Permuted, Reshaped, TensorInfo
from ...util.text import escape
from ..keys.spelling import numberless
from .groups import Group, Part

__all__ = ["NetworkGroup", "NetworkPart", "StoredTensors"]


class NetworkPart(NamedTuple):
    """A part of an axis of a tensor of the network, with the fields of ``Part``.

    ``expert`` is the index of the expert that the part belongs to; -1 if it belongs to none.
    """

    key: str
    dim: int
    begin: int = 0
    block: int = 1
    is_shared: bool = False
    expert: int = -1


class NetworkGroup(NamedTuple):
    """A group of axes of the network, with the fields of ``Group``."""

    name: str
    kind: str
    units: int
    parts: tuple[NetworkPart, ...]
    sharing: int = 1


class _Leaf(NamedTuple):
    """A tensor of the checkpoint that is a part of a tensor of the network.

    ``dims`` has an item for each dimension of the checkpoint's tensor: (dimension of the network's tensor, index at
    which the part begins there). The item is None for a dimension of size 1 that the network's tensor lacks. A
    dimension that only the network's tensor has is a key of ``fixed``; the value is the index of the checkpoint's
    tensor along this dimension, such as the number of an expert.
    """

    key: str
    dims: tuple[tuple[int, int] | None, ...]
    fixed: Mapping[int, int]


class StoredTensors:
    """Finds the tensors of a checkpoint that make up each tensor of a network.

    ``source`` are the checkpoint's tensors, and ``made`` the tensors that the library makes of them when it loads the
    checkpoint. ``names`` maps keys of ``made`` to keys of the network. ``ties`` maps each further key of a tensor of
    the network to the tensor's first key.
    """

    def __init__(
        self,
        source: Mapping[str, TensorInfo],
        made: Mapping[str, TensorInfo],
        names: Mapping[str, str],
        ties: Mapping[str, str],
    ) -> None:
        self._source = source
        self._known: dict[object, list[str]] = {}
        for key, info in source.items():  # tied tensors have several keys
            self._known.setdefault(_place(info), []).append(key)
        self._leaves: dict[str, list[_Leaf] | str] = {}
        for key, info in made.items():
            name = names.get(key, key)
            owner = ties.get(name, name)
            try:
                found = list(self._walk(info, tuple((dim, 0) for dim in range(len(info.shape))), {}))
            except _UnknownError as error:
                self._leaves[owner] = str(error)
                continue
            own = self._leaves.setdefault(owner, [])
            if not isinstance(own, str):
                own += found

    def _walk(
        self, info: TensorInfo, dims: tuple[tuple[int, int] | None, ...], fixed: Mapping[int, int]
    ) -> Iterator[_Leaf]:
        """Yield the checkpoint's tensors from which the library makes ``info``, a tensor or an intermediate result.

        ``dims`` and ``fixed`` say where ``info`` is in the network's tensor (see ``_Leaf``). Raises _UnknownError if
        the library computes new values instead of only moving them.
        """
        if keys := self._known.get(_place(info)):
            for key in keys:
                yield _Leaf(key, *_reshaped(info.shape, self._source[key].shape, dims, fixed))
        elif isinstance(info.made, Concatenated):
            at, along = 0, dims[info.made.dim]
            for one in info.made.of:
                moved = (along[0], along[1] + at) if along is not None else None
                yield from self._walk(one, (*dims[: info.made.dim], moved, *dims[info.made.dim + 1 :]), fixed)
                at += one.shape[info.made.dim]
        elif isinstance(info.made, Reshaped):
            own, more = _reshaped(info.shape, info.made.of.shape, dims, fixed)
            yield from self._walk(info.made.of, own, more)
        elif isinstance(info.made, Permuted):
            theirs = dict(zip(info.made.dims, dims, strict=True))
            yield from self._walk(info.made.of, tuple(theirs[dim] for dim in range(len(dims))), fixed)
        else:
            raise _UnknownError("the library computes the tensor from others when it loads the model")

    def group(self, found: NetworkGroup) -> Group:
        """Return the parts of the checkpoint's tensors that make up ``found``, a group of the network.

        Raises PlanError if the checkpoint does not have one of the axes in ``found``, or has it in another form.
        """
        parts = [part for one in found.parts for part in self._parts(found, one)]
        return Group(found.name, found.kind, found.units, tuple(dict.fromkeys(parts)), found.sharing)

    def _parts(self, group: NetworkGroup, part: NetworkPart) -> list[Part]:
        leaves = self._leaves.get(part.key, "it is not in the checkpoint")
        if isinstance(leaves, str):
            raise PlanError(f"{escape(part.key)}: {leaves}.")
        units = group.units * (group.sharing if part.is_shared else 1)
        end = part.begin + units * part.block
        parts: list[Part] = []
        covered: dict[str, int] = {}
        experts: dict[str, dict[int, str]] = {}
        for leaf in leaves:
            if part.expert >= 0 and leaf.fixed.get(0) != part.expert:
                if 0 not in leaf.fixed:
                    raise PlanError(
                        f"{escape(leaf.key)} has the weights of all experts, so one expert cannot be reordered alone."
                    )
                continue
            if part.dim in leaf.fixed:
                experts.setdefault(numberless(leaf.key), {})[leaf.fixed[part.dim]] = leaf.key
                continue
            dim = next((at for at, one in enumerate(leaf.dims) if one is not None and one[0] == part.dim), None)
            if dim is None:
                raise PlanError(
                    f"{escape(leaf.key)} of the checkpoint cannot be aligned: none of its dimensions belongs to "
                    f"dimension {part.dim} of {escape(part.key)} in the network."
                )
            begin = (leaf.dims[dim] or (0, 0))[1]
            size = self._source[leaf.key].shape[dim]
            if begin + size <= part.begin or begin >= end:
                continue
            if begin > part.begin or begin + size < end:
                raise PlanError(
                    f"the checkpoint divides dimension {part.dim} of {escape(part.key)} into several tensors, such as "
                    f"{escape(leaf.key)}."
                )
            parts.append(Part((leaf.key,), dim, part.begin - begin, part.block, part.is_shared))
            covered[leaf.key] = units
        for keys in experts.values():
            if sorted(keys) != list(range(units)):
                raise PlanError(f"the checkpoint does not have all {units} experts of {escape(part.key)}.")
            parts.append(Part(tuple(keys[number] for number in range(units))))
        if not parts:
            which = f"expert {part.expert}" if part.expert >= 0 else f"a part of dimension {part.dim}"
            raise PlanError(f"the checkpoint has no tensor for {which} of {escape(part.key)} in the network.")
        return parts


class _UnknownError(Exception):
    """Raised for a tensor of a network that is not made of stored tensors by joining, reshaping and permuting alone."""


def _place(info: TensorInfo) -> object:
    return (info.storage, info.offset) if info.made is None else id(info)


def _reshaped(
    shape: Sequence[int],
    of: Sequence[int],
    dims: tuple[tuple[int, int] | None, ...],
    fixed: Mapping[int, int],
) -> tuple[tuple[tuple[int, int] | None, ...], dict[int, int]]:
    """Return the fields ``dims`` and ``fixed`` of a ``_Leaf`` for a tensor before it is reshaped.

    ``of`` is its shape before. The arguments ``shape``, ``dims`` and ``fixed`` describe it after it is reshaped. Raises
    _UnknownError if the shapes differ in more than dimensions of size 1.
    """
    found: list[tuple[int, int] | None] = []
    more = dict(fixed)
    at = 0
    for place, size in enumerate(of):
        while at < len(shape) and shape[at] != size and shape[at] == 1:
            more |= _fixed(dims[at])
            at += 1
        rest = len(of) - place < len(shape) - at
        while rest and at < len(shape) and shape[at] == 1 and len(of) - place < len(shape) - at:
            more |= _fixed(dims[at])
            at += 1
        if at < len(shape) and shape[at] == size:
            found.append(dims[at])
            at += 1
        elif size == 1:
            found.append(None)
        else:
            raise _UnknownError("the tensor has another shape when the model is loaded")
    for rest_dim in range(at, len(shape)):
        if shape[rest_dim] != 1:
            raise _UnknownError("the tensor has another shape when the model is loaded")
        more |= _fixed(dims[rest_dim])
    return tuple(found), more


def _fixed(dim: tuple[int, int] | None) -> dict[int, int]:
    return {} if dim is None else {dim[0]: dim[1]}
