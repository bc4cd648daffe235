"""Measures whether token ids follow the order of training: the order of merge rules (BPE), or of scores (Unigram)."""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt, lt
from typing import NamedTuple

__all__ = ["RuleOrder", "rule_order"]


class RuleOrder(NamedTuple):
    """How well token ids follow the order of the merge rules that make the tokens or, for Unigram, of falling scores.

    ``number`` is the number of tokens. ``falls`` is the number of rules whose token has a smaller id than the token of
    the rule before. ``rising`` compares each rule in the first half of the list with the rule half a list later. It is
    the share of these pairs in which the token of the later rule has the larger id. It is 1 if tokens are numbered in
    the order of the rules, and about 0.5 if they are numbered at random.
    """

    number: int = 0
    falls: int = 0
    rising: float = 1.0


def rule_order(ids: Sequence[int]) -> RuleOrder:
    """Return the RuleOrder of ``ids``, the ids of tokens in the order of their merge rules, or of falling scores."""
    later = ids[len(ids) // 2 :]
    rising = sum(map(lt, ids, later)) / len(later) if len(ids) > 1 else 1.0
    return RuleOrder(len(ids), sum(map(gt, ids, ids[1:])), rising)
