"""Chooses, for each layer, the groups of experts that are merged into one expert."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError
from ...planning.operations.operation import groups_of
from ...planning.resizing.axes import Axis
from ...planning.resizing.change import Change
from ...planning.resizing.merge_experts import Groups, groups_text, merged, similar_groups
from ...planning.resizing.select import by_layer, largest
from ...util.text import brief_repr, count, escape
from .choices import Choices
from .expert_groups import check_groups
from .scores import Measures

__all__ = ["SIMILAR", "check_merge", "merged_groups"]

SIMILAR = "similar"
"""The value of ``--merge-experts`` for groups of experts whose rows of the router are similar."""


def check_merge(merge: str) -> None:
    """Raise ConfigError if ``--merge-experts`` is neither ``similar`` nor groups of experts."""
    if merge != SIMILAR and not groups_of(merge):
        raise ConfigError(
            f"--merge-experts {brief_repr(merge, 60)} is neither {SIMILAR} nor a list of groups of different experts.",
            hint="Write, for example, --merge-experts 0+4,1+5,2+6,3+7.",
        )


def merged_groups(
    name: str,
    layers: Sequence[Sequence[Axis]],
    numbers: tuple[int, int],
    choices: Choices,
    measures: Measures,
    parts: int,
) -> Change:
    """Return the change of the field ``name``, the number of experts, to a smaller number by merging groups of experts.

    The user lists the groups, or each group is formed around one expert: an expert in ``--keep``, or, without
    ``--keep``, one of those with the highest scores. ``numbers`` are the old and the new number of experts, and
    ``layers`` has the axes of the experts of each layer. ``parts`` is the number of equal parts into which the router
    divides the experts (DeepSeek's n_group); each part gets equally many groups. Raises ConfigError if the user's list
    or ``--keep`` does not fit these numbers, PlanError if a tensor does not have one element for each expert.
    """
    old, new = numbers
    heads = choices.kept.get(name)

    def change(groups: Sequence[Groups], by: str) -> Change:
        found = choices.alignment
        each = zip(layers, groups, weights, strict=True) if found is not None else ()
        aligned = [found.aligned(*layer) for layer in each] if found is not None else []
        return merged(name, layers, groups, weights, numbers, f"{by}{counted}", aligned)

    weights = [measures.loads(axes, old) for axes in layers]
    counted = f", each weighted by its frequency of use in {escape(choices.by)}" if any(weights) else ""
    if choices.merge != SIMILAR:
        groups = _listed(name, choices, numbers)
        _check_within_parts(name, groups, numbers, parts)
        return change([groups] * len(layers), "those in the list")
    if heads is not None and (len(heads) != new or heads[-1] >= old):
        raise ConfigError(
            f"--keep {name} lists {len(heads)} indices; it must list {new} different indices below {old}."
        )
    check_groups(name, numbers, heads, parts)
    found = [
        similar_groups(
            measures.similarity(axes), heads or largest(measures.scores("experts", axes, old), new, parts), parts
        )
        for axes in layers
    ]
    merge = change(found, "by similar rows of the router")
    merge.said += f"; the groups are {by_layer(layers, list(map(groups_text, found)))}"
    return merge


def _listed(name: str, choices: Choices, numbers: tuple[int, int]) -> list[list[int]]:
    """Return the groups of experts that the user lists; raises ConfigError for a wrong number or a missing expert.

    ``numbers`` are the old and the new number of experts; the new number is the number of groups.
    """
    old, new = numbers
    groups = groups_of(choices.merge)
    if name in choices.kept:
        raise ConfigError(
            f"--keep {name} and a list of groups of experts cannot be used together.", hint="Leave --keep out."
        )
    if len(groups) != new:
        raise ConfigError(
            f"--merge-experts lists {count(len(groups), 'group')}, but {name} is {new}.", hint=f"List {new} groups."
        )
    listed = {expert for group in groups for expert in group}
    wrong = sorted(listed ^ set(range(old)))
    if wrong:
        what = f"there is no expert {wrong[-1]}" if wrong[-1] >= old else f"expert {wrong[0]} is not in any group"
        raise ConfigError(
            f"--merge-experts: {what}; the source has the experts 0 to {old - 1}.",
            hint="List every expert in exactly one group; to remove experts, first run another ckpt resize.",
        )
    return groups


def _check_within_parts(name: str, groups: Sequence[Sequence[int]], numbers: tuple[int, int], parts: int) -> None:
    """Raise ConfigError if merged experts would be in another group of the router than before they were merged.

    ``groups`` has the experts that are merged into each new expert. ``parts`` is the number of groups of the router.
    """
    old, new = numbers
    check_groups(name, numbers, None, parts)
    for place, group in enumerate(groups):
        if {expert * parts // old for expert in group} != {place * parts // new}:
            raise ConfigError(
                f"--merge-experts: {'+'.join(map(str, group))} becomes expert {place}, which is in another group of "
                f"the router: it divides the experts into {parts} groups.",
                hint=f"Merge only experts of the same group of the router ({old // parts} consecutive experts), and "
                "list the new experts in this order.",
            )
