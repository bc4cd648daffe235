"""Fewer experts, each the mean of a group of the source's experts, as in M-SMoE (https://arxiv.org/abs/2310.01334).

The experts with the highest scores become the heads of groups. Each other expert joins the head whose row of the router
is most similar to its own row. In the mean, an expert's weight is how often the expert is used, if this is known. The
rows of the router are averaged with the same weights. As in the paper, the channels of experts may be aligned before:
the channels of an expert can have any order, and only in the right one do similar channels meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import PlanError
from ...util.text import count, escape
from ..aligning.groups import Order, Part, order_along, placed_in
from ..keys.spelling import quoted
from ..operations.operation import MOST
from .axes import Axis, indices_text
from .change import Change

__all__ = ["AlignedExperts", "Groups", "groups_text", "merged", "similar_groups"]

Groups = Sequence[Sequence[int]]
"""The numbers of the experts of each group."""
EQUAL = 1 - 1e-6
"""Experts with at least this cosine are equal up to rounding."""


@dataclass(frozen=True)
class AlignedExperts:
    """New orders of the channels of a layer's experts: ``orders`` maps an expert whose order changes to its new order.

    ``channels`` is the number of channels of an expert. ``parts`` are the parts of axes that consist of channels.
    ``shapes`` has the shapes of the tensors with these axes; dimension 0 of the tensors counts the experts. ``before``
    and ``after`` have, for each expert that is merged into another, the cosine between the two: before and after its
    channels are reordered.
    """

    parts: Sequence[Part]
    channels: int
    shapes: Mapping[str, Sequence[int]]
    orders: Mapping[int, Order]
    before: Sequence[float]
    after: Sequence[float]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the operations that reorder the channels: the experts of a tensor are taken apart, and joined again."""
        for key, shape in self.shapes.items() if self.orders else ():
            yield {"unstack": quoted(key), "into": f"{quoted(key)}.{{i}}", "dim": 0}
            for expert, order in self.orders.items():
                yield from self._taken(key, shape, expert, order)
            yield {"stack": f"{quoted(key)}.{{n}}", "into": quoted(key), "dim": 0}

    def _taken(self, key: str, shape: Sequence[int], expert: int, order: Order) -> Iterator[dict[str, Any]]:
        own = [part for part in self.parts if part.keys[0] == key]
        for dim in sorted({part.dim for part in own}):
            along = [part for part in own if part.dim == dim]
            block = min(part.block for part in along)
            found = order_along(shape[dim], placed_in(0, along), {0: (order, order)})
            units = [index // block for index in found[::block]]
            indices = indices_text([(unit, unit + 1) for unit in units])
            yield {"take": f"{quoted(key)}.{expert}", "dim": dim - 1, "block": block, "indices": indices}


def similar_groups(similarity: Sequence[Sequence[float]], heads: Sequence[int], within: int = 1) -> list[list[int]]:
    """Return a group for each expert in ``heads``, in order: this expert, and the experts that are most similar to it.

    Experts are given by their indices. ``similarity[i][j]`` says how similar the experts i and j are. If ``within`` is
    above 1, the experts are first divided into as many equal ranges, and all experts of a group are from one range.
    """
    size = len(similarity) // within
    groups = {head: [head] for head in heads}
    for expert, own in enumerate(similarity):
        if expert not in groups:
            near = [head for head in heads if head // size == expert // size]
            groups[max(near, key=lambda head: (own[head], -head))].append(expert)
    return [sorted(group) for group in groups.values()]


def groups_text(groups: Groups) -> str:
    """Return groups as text, as in ``0+4,1+5``."""
    return ",".join("+".join(map(str, group)) for group in groups)


def merged(
    field: str,
    layers: Sequence[Sequence[Axis]],
    groups: Sequence[Groups],
    weights: Sequence[Sequence[float]],
    numbers: tuple[int, int],
    by: str,
    aligned: Sequence[AlignedExperts] = (),
) -> Change:
    """Return the change that merges experts; ``groups`` and ``weights`` have an entry for each of the ``layers``.

    The weights of a layer are [] if all its experts have equal weights. ``by`` says how the groups were chosen.
    ``aligned`` has the new orders of the channels in each layer; it is empty if channels keep their order. Raises
    PlanError if a tensor does not have one element for each expert.
    """
    old, new = numbers
    rows: list[dict[str, Any]] = [row for one in aligned for row in one.rows()]
    for axes, own, counts in zip(layers, groups, weights, strict=True):
        for axis in axes:
            if (axis.before, axis.after, axis.parts) != (old, new, 1):
                raise PlanError(
                    f"{field} {old} to {new} changes dimension {axis.dim} of {escape(axis.key)} from {axis.before} to "
                    f"{axis.after}, which is not one element for each expert, so experts cannot be merged.",
                    hint="Use the command without --merge-experts: then experts are left out, not merged.",
                )
            key = quoted(axis.key) if aligned else axis.key
            row: dict[str, Any] = {"combine": key, "dim": axis.dim, "groups": groups_text(own)}
            rows.append({**row, "weights": _usable(counts, own)} if counts else row)
    said = f"{field} {old} to {new}: experts are merged in groups, {by}; {_alignment_said(aligned)} (arXiv 2310.01334)"
    if not aligned:
        return Change(said, False, rows)
    if len(rows) > MOST:
        raise PlanError(
            f"{field} {old} to {new}: aligning channels takes {len(rows)} operations, more than the limit of {MOST}.",
            hint="Merge the experts in several commands: first to half of their number, and then to fewer.",
        )
    return Change(said, False, after=rows)


def _alignment_said(aligned: Sequence[AlignedExperts]) -> str:
    """Return a text on the order of the channels of experts, and on the similarity of the merged experts."""
    if not aligned:
        return "their channels are not aligned first"
    before, after = ([one for layer in aligned for one in getattr(layer, name)] for name in ("before", "after"))
    moved = sum(len(layer.orders) for layer in aligned)
    said = (
        f"the channels of {moved} of {count(len(after), 'expert')} are first put into the order of another "
        f"expert's channels in the group: cosine {_range(before)} before and {_range(after)} after"
    )
    return f"{said}, so these experts are equal and none of them is lost" if min(after, default=0) >= EQUAL else said


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values, default=1.0):.3f}", f"{max(values, default=1.0):.3f}"
    return low if low == high else f"{low}..{high}"


def _usable(counts: Sequence[float], groups: Groups) -> list[float]:
    """Return the weight of each expert in the mean of its group: how often the expert is used (``counts``).

    If no expert of a group is ever used, all experts of this group get the weight 1.
    """
    found = list(counts)
    for group in groups:
        if not sum(counts[at] for at in group):
            for at in group:
                found[at] = 1.0
    return found
