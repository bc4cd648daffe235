"""Counts the groups into which the router divides the experts, and checks that equally many experts remain in each.

A router with groups (DeepSeek-V3, https://arxiv.org/abs/2412.19437) first chooses some groups of experts, and then
experts in these groups. The experts are numbered, and divided into groups of equal size in this order. So if different
numbers of experts are removed from the groups, some of the remaining experts get into another group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from ...errors import ConfigError
from ...planning.resizing.fields import EXPERT_GROUPS
from .asked_fields import AskedFields
from .checks import USED_GROUPS

__all__ = ["check_groups", "groups_kept", "has_groups"]

_METHOD, _WITHOUT_GROUPS = "topk_method", "greedy"


def has_groups(asked: AskedFields, name: str) -> bool:
    """Return whether routers choose some of several groups of experts, in the source or in the output.

    ``name`` is the field with the number of experts.
    """
    return max(_numbers(asked, name)) > 1


def groups_kept(asked: AskedFields, name: str) -> int:
    """Return the number of groups of experts in each of which the same number of experts must remain; 1 without groups.

    If the same command changes the number of groups, the result is the greatest common divisor of the old and the new
    number of groups. ``name`` is the field with the number of experts.
    """
    return gcd(*_numbers(asked, name))


def check_groups(name: str, numbers: tuple[int, int], listed: Sequence[int] | None, groups: int) -> None:
    """Raise ConfigError if not the same number of experts would remain in each of the ``groups`` groups of experts.

    ``name`` is the field with the number of experts, ``numbers`` are its old and its new value, and ``listed`` are the
    experts in ``--keep``, or None.
    """
    old, new = numbers
    divides = f"the router of this network divides the experts into {groups} groups"
    if old % groups:
        raise ConfigError(
            f"{name}: {divides}, but {old} is not a multiple of {groups}.", hint="Correct config.json of the source."
        )
    if new % groups:
        raise ConfigError(
            f"{name} {new}: {divides}, and the same number of experts must remain in each group.",
            hint=f"Choose a multiple of {groups}.",
        )
    if listed and {sum(one * groups // old == group for one in listed) for group in range(groups)} != {new // groups}:
        raise ConfigError(
            f"--keep {name} must keep the same number of experts of each group: {divides}.",
            hint=f"Each group has {old // groups} experts that follow each other: keep {new // groups} of them.",
        )


def _numbers(asked: AskedFields, name: str) -> tuple[int, int]:
    """Return the numbers of groups of the source and of the output."""
    before, inside = asked.beside(name), name.rpartition(".")[0]
    paths = {one: f"{inside}.{one}" if inside else one for one in (*EXPERT_GROUPS, USED_GROUPS, _METHOD)}
    after = {**before, **{one: asked.new[path] for one, path in paths.items() if path in asked.new}}
    return _number(before), _number(after)


def _number(part: Mapping[str, Any]) -> int:
    """Return the number of groups; 1 if each token uses all groups, since then the groups have no effect."""
    number = next((part[one] for one in EXPERT_GROUPS if type(part.get(one)) is int), 1)
    used = part.get(USED_GROUPS)
    is_free = part.get(_METHOD) == _WITHOUT_GROUPS or (type(used) is int and used >= number)
    return 1 if is_free else max(number, 1)
