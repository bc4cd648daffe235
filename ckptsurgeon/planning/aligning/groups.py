"""Groups of axes (dimensions of tensors) that have to be permuted together, and the operations that permute them.

The channels of a feed-forward layer may have any order if the layer that computes them and the layer that reads them
use the same order. The same is true of the heads of an attention layer, of experts, and of the channels of the residual
stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...tensors.info import TensorInfo
from ...util.text import escape
from ..keys.spelling import quoted
from ..resizing.axes import grouped, indices_text

__all__ = [
    "CHANNELS",
    "EXPERTS",
    "HEADS",
    "OWN",
    "RESIDUAL",
    "Group",
    "Order",
    "Part",
    "order_along",
    "placed_in",
    "taking",
    "where",
]

RESIDUAL, EXPERTS, HEADS, CHANNELS, OWN = "residual stream", "experts", "heads", "channels", "groups"
"""The kinds of groups, in the order in which they are aligned; ``OWN`` is the kind of groups that the user lists."""
STACK = "ckpt-stacked"
"""The segment that replaces the number of an expert in a key while all experts are stacked in one tensor."""

Order = Sequence[int]
"""A permutation: for each new position, the old index of the unit that moves there."""


@dataclass(frozen=True)
class Part:
    """A range of an axis that consists of a group's units (heads, channels), each of ``block`` elements.

    The range begins at the element ``begin`` of the dimension ``dim`` of the tensor ``keys[0]``. If there are several
    keys, each tensor is one unit (an expert), and the other fields do not matter. ``is_shared`` is true for query heads
    if several of them share one key head; the units are then the key heads.
    """

    keys: tuple[str, ...]
    dim: int = 0
    begin: int = 0
    block: int = 1
    is_shared: bool = False


@dataclass(frozen=True)
class Group:
    """Parts of tensors that must be permuted together: each has the same units in the same order.

    ``units`` is the number of units, ``sharing`` the number of query heads that share a unit, if the units are key
    heads.
    """

    name: str
    kind: str
    units: int
    parts: tuple[Part, ...]
    sharing: int = 1

    def size(self, part: Part) -> int:
        """Return the number of units in a part; for a part of shared query heads, the number of query heads."""
        return self.units * (self.sharing if part.is_shared else 1)

    def __str__(self) -> str:
        return f"{self.kind} of {escape(self.name)}" if self.name else self.kind


class _Placed(NamedTuple):
    """A part of an axis, and the index, in a list of groups, of the group that the part belongs to."""

    group: int
    part: Part


Places = Mapping[str, Mapping[int, Sequence[_Placed]]]


def where(groups: Sequence[Group]) -> dict[str, dict[int, list[_Placed]]]:
    """Return the parts of all groups on each dimension of each tensor: ``{key: {dimension: parts}}``.

    Experts that are stored in one tensor each are left out.
    """
    found: dict[str, dict[int, list[_Placed]]] = {}
    for number, group in enumerate(groups):
        for part in group.parts:
            if len(part.keys) == 1:
                found.setdefault(part.keys[0], {}).setdefault(part.dim, []).append(_Placed(number, part))
    return found


def placed_in(group: int, parts: Sequence[Part]) -> list[_Placed]:
    """Return (``group``, part) for each part, as ``order_along`` needs them; ``group`` is the index of a group."""
    return [_Placed(group, part) for part in parts]


def order_along(size: int, placed: Sequence[_Placed], orders: Mapping[int, tuple[Order, Order]]) -> list[int]:
    """Return, for each new position on an axis of ``size`` elements, the old index of the element that moves there.

    ``placed`` are the parts on this axis. ``orders`` maps the index of a group to the order of its units and the order
    of the query heads that share them.
    """
    found = list(range(size))
    for number, part in placed:
        units, shared = orders.get(number, ((), ()))
        for place, unit in enumerate(shared if part.is_shared else units):
            first, own = part.begin + place * part.block, part.begin + unit * part.block
            found[first : first + part.block] = range(own, own + part.block)
    return found


def taking(
    groups: Sequence[Group],
    orders: Mapping[int, tuple[Order, Order]],
    tensors: Mapping[str, TensorInfo],
    ties: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return the operations that put the units of the groups into new orders.

    ``orders`` maps the index of a group to its new orders (see ``order_along``), ``tensors`` are the tensors of the
    model. Rows are reordered before columns, because whole rows can then be read; experts come last. ``ties`` maps each
    further key of a tied tensor to its first key; one operation reorders the tensor under all its keys, so that they
    stay tied.
    """
    rows: list[dict[str, Any]] = []
    tied: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        tied.setdefault(owner, [owner]).append(alias)
    for key, dims in where(groups).items():
        for dim in sorted(dims) if key not in ties else ():
            size, block = tensors[key].shape[dim], _block(dims[dim], tensors[key].shape[dim])
            order = order_along(size, dims[dim], orders)
            if order != list(range(size)):
                units = [index // block for index in order[::block]]
                indices = indices_text([(unit, unit + 1) for unit in units])
                rows.append({"take": key, "dim": dim, "block": block, "indices": indices})
    moved = [*grouped([row for row in rows if row["take"] not in tied], list(tensors))]
    moved += ({**row, "take": _any_of(tied[row["take"]])} for row in rows if row["take"] in tied)
    for number, group in enumerate(groups):
        order = list(orders.get(number, ((), ()))[0])
        if order and order != list(range(group.units)):
            moved += (row for part in group.parts if len(part.keys) > 1 for row in _experts(part.keys, order))
    return moved


def _any_of(keys: Sequence[str]) -> str:
    """Return a pattern that matches ``keys`` and no other key."""
    return f"re:{'|'.join(map(re.escape, keys))}"


def _block(placed: Sequence[_Placed], size: int) -> int:
    """Return the size of the blocks in which an axis is reordered: the elements of a block stay next to each other."""
    blocks = {part.block for _, part in placed}
    block = min(blocks)
    fits = all(one % block == 0 for one in (*blocks, *(part.begin for _, part in placed), size))
    return block if fits else 1


def _experts(keys: Sequence[str], order: Order) -> Iterator[dict[str, Any]]:
    """Yield operations that reorder experts that are stored in one tensor each.

    The ``keys`` of these tensors differ in one number, which counts from 0.
    """
    first, last = keys[0].split("."), keys[-1].split(".")
    at = next(place for place, (one, other) in enumerate(zip(first, last, strict=True)) if one != other)
    before, after = first[:at], first[at + 1 :]
    one = ".".join([*map(quoted, before), "{n}", *map(quoted, after)])
    each = ".".join([*map(quoted, before), "{i}", *map(quoted, after)])
    stack = ".".join([*map(quoted, before), STACK, *map(quoted, after)])
    yield {"stack": one, "into": stack}
    yield {"take": stack, "dim": 0, "block": 1, "indices": indices_text([(unit, unit + 1) for unit in order])}
    yield {"unstack": stack, "into": each, "dim": 0}
