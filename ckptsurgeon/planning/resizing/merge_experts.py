"""Fewer experts, each the mean of a group of the source's experts, as in M-SMoE (https://arxiv.org/abs/2310.01334).

The experts with the highest scores become the heads of groups. Each other expert joins the head whose row of the router
is most similar to its own row. In the mean, an expert's weight is how often the expert is used, if this is known. The
rows of the router are averaged with the same weights. The paper also aligns the channels of experts before; this is not
done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import PlanError
from ...util.text import escape
from .axes import Axis
from .change import Change

__all__ = ["Groups", "groups_text", "merged", "similar_groups"]

Groups = Sequence[Sequence[int]]
"""The numbers of the experts of each group."""


def similar_groups(similarity: Sequence[Sequence[float]], heads: Sequence[int], within: int = 1) -> list[list[int]]:
    """Return a group for each expert in ``heads``, in order: the expert, and the others that are most similar to it.

    ``similarity`` has, for each expert, how similar each other expert is to it. The experts are divided into ``within``
    equal parts: all experts of a group are from one part.
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
) -> Change:
    """Return the change that merges experts; ``groups`` and ``weights`` have an entry for each of the ``layers``.

    The weights of a layer are [] if all its experts have equal weights. ``by`` says how the groups were chosen. Raises
    PlanError if a tensor does not have one element for each expert.
    """
    old, new = numbers
    rows: list[dict[str, Any]] = []
    for axes, own, counts in zip(layers, groups, weights, strict=True):
        for axis in axes:
            if (axis.before, axis.after, axis.parts) != (old, new, 1):
                raise PlanError(
                    f"{field} {old} to {new} changes dimension {axis.dim} of {escape(axis.key)} from {axis.before} to "
                    f"{axis.after}, which is not one element for each expert.",
                    hint="Leave experts out instead: leave --merge-experts out.",
                )
            row: dict[str, Any] = {"combine": axis.key, "dim": axis.dim, "groups": groups_text(own)}
            rows.append({**row, "weights": _usable(counts, own)} if counts else row)
    said = f"{field} {old} to {new}: experts are merged in groups, {by}; their channels are not aligned first"
    return Change(f"{said} (arXiv 2310.01334)", False, rows)


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
