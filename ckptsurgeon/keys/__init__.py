"""Key patterns and rules: the language in which people say which tensors they mean. Pure: opens nothing."""

from .choosing import Chosen, chosen_keys
from .hints import deeper_notes, matched, nearest, unmatched
from .induce import left_out, rules_for, unspelled
from .matcher import KeyMatcher
from .pattern import Captures, KeyPattern
from .renaming import Renaming, check_shadowed, rename
from .rules import Rule, RuleLine, parse_rule, rules_from_lines, target_rule
from .rulesets import RULESETS, rules_of_sets
from .spell import quoted

__all__ = [
    "RULESETS",
    "Captures",
    "Chosen",
    "KeyMatcher",
    "KeyPattern",
    "Renaming",
    "Rule",
    "RuleLine",
    "check_shadowed",
    "chosen_keys",
    "deeper_notes",
    "left_out",
    "matched",
    "nearest",
    "parse_rule",
    "quoted",
    "rename",
    "rules_for",
    "rules_from_lines",
    "rules_of_sets",
    "target_rule",
    "unmatched",
    "unspelled",
]
