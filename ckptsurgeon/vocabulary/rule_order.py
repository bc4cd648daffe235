"""Compares the order of BPE's merge rules with the ids of the tokens that they make."""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt, lt
from typing import NamedTuple

__all__ = ["RuleOrder", "rule_order"]


class RuleOrder(NamedTuple):
    """How the ids of the tokens that merge rules make follow the order of the rules.

    ``falls`` is the number of rules whose token has a smaller id than that of the rule before. ``rising`` is the share
    of the pairs of rules, half of the list apart, in which the later rule's token has the larger id: 1 if tokens are
    numbered in the order of the rules, and about 0.5 if they are numbered at random.
    """

    falls: int = 0
    rising: float = 1.0


def rule_order(ids: Sequence[int]) -> RuleOrder:
    """Return the order of the ids of tokens that merge rules make; ``ids`` has them in the order of the rules."""
    later = ids[len(ids) // 2 :]
    rising = sum(map(lt, ids, later)) / len(later) if len(ids) > 1 else 1.0
    return RuleOrder(sum(map(gt, ids, ids[1:])), rising)
