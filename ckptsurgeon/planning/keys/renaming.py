"""Renames each key by the first rule that matches it; defines the named sets of rules (``--ruleset``).

All patterns are matched together, segment by segment. A state says how much of each pattern has matched so far; the
state after a further segment is computed once and cached. This is a deterministic automaton that is built as keys need
it. It stays small, since even a very large checkpoint has few distinct segments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...errors import PatternError
from ...util.text import count, escape
from .pattern import KeyPattern
from .pattern_parser import DOUBLE
from .rules import Rule, RuleLine, parse_rule

__all__ = ["RULESETS", "KeyMatcher", "Renaming", "check_shadowed", "rename", "rule_matcher", "rules_of_sets"]

# Rules that many users need, by name. Each rule of a set may match or not; it is an error if no rule matches.

RULESETS: Mapping[str, tuple[str, ...]] = {
    # from torch.nn.utils.weight_norm to torch.nn.utils.parametrizations.weight_norm (torch 2.0)
    "weight-norm": (
        "**.weight_g=**.parametrizations.weight.original0",
        "**.weight_v=**.parametrizations.weight.original1",
    ),
    "weight-norm-old": (
        "**.parametrizations.weight.original0=**.weight_g",
        "**.parametrizations.weight.original1=**.weight_v",
    ),
    # torch.nn.parallel.DistributedDataParallel
    "ddp": ("module=",),
    # a LightningModule that keeps its network as self.model or self.net
    "lightning": ("model=", "net="),
    # torch.compile, for any number of nested modules
    "compile": ("**._orig_mod.**=**.**",),
    # ESPnet's DeepSpeed trainer wraps its model, which is wrapped again if it is compiled
    "espnet-deepspeed": ("module._orig_mod=", "module="),
    # the two misspelled names that SpeechBrain's parameter_transfer corrects
    "speechbrain": (
        "**.mutihead_attn.**=**.multihead_attn.**",
        "**.convs_intermedite.**=**.convs_intermediate.**",
    ),
}

_AGAIN = frozenset({"compile"})
"""The named sets of rules (``--ruleset``) that are applied again and again, until no rule matches a key.

Each time, a rule strips one wrapper; a key may have several.
"""


def rules_of_sets(names: Iterable[str], keys: Sequence[str], stripped: Sequence[str] = ()) -> list[Rule]:
    """Return the rules in the named sets (``--ruleset``) that match any of ``keys``.

    ``stripped`` are the wrappers that were removed from the keys before, such as ``module``, for the error.
    Raises PatternError for an unknown name, and for a set without a rule that matches.
    """
    found: list[Rule] = []
    for name in names:
        if name not in RULESETS:
            raise PatternError(
                f"there is no ruleset {name!r:.60}.", hint=f"Use one of these rulesets: {', '.join(RULESETS)}."
            )
        lines = [RuleLine.at(f"--ruleset {name}", text) for text in RULESETS[name]]
        rules = [replace(parse_rule(line), lenient=True, again=name in _AGAIN) for line in lines]
        hits = KeyMatcher([rule.pattern for rule in rules if rule.pattern is not None]).hits(keys)
        matching = [rule for rule, hit in zip(rules, hits, strict=True) if hit]
        if not matching:
            removed = next((one for one in stripped if any(_matches_wrapper(rule, one) for rule in rules)), "")
            why = f": the wrapper {escape(removed.removeprefix('**.'))} was already removed from the keys"
            raise PatternError(
                f"--ruleset {name} matches none of the {count(len(keys), 'source key')}{why if removed else ''}.",
                hint=f"Leave the ruleset out: its rules are {', '.join(RULESETS[name])}.",
            )
        found += matching
    return found


def _matches_wrapper(rule: Rule, wrapper: str) -> bool:
    """Return whether a rule would match keys that still have ``wrapper``; ``**`` in it stands for any module."""
    return rule.pattern is not None and rule.pattern.matches(f"{wrapper.replace('**', 'any')}.any")


@dataclass(frozen=True)
class Renaming:
    """The result of renaming keys; rules are referred to by their index.

    ``names`` maps each key to its new names; there are several if its rule lists several. ``by`` maps each key to the
    rule that renamed it, or to None if no rule matched and the key keeps its name. ``used`` are the rules that renamed
    a key.
    """

    names: dict[str, tuple[str, ...]]
    by: dict[str, int | None]
    used: tuple[int, ...]
    shadowed: Mapping[int, int] = field(default_factory=dict)
    """{index of a rule: number of keys that it matches}, for rules without effect: earlier rules rename these keys."""

    def collisions(self) -> dict[str, list[str]]:
        """Return {new name: the keys that get this name}, for each name that two or more keys get."""
        landed: dict[str, list[str]] = {}
        for key, names in self.names.items():
            for name in names:
                landed.setdefault(name, []).append(key)
        return {name: keys for name, keys in landed.items() if len(keys) > 1}


def _renamed(rule: Rule, key: str) -> tuple[str, ...]:
    names = rule.names(key)
    if not names:
        raise PatternError(
            f"{rule.label} matches {escape(key)} segment by segment but not as a whole.",
            hint="Please report this message: the cause is a bug in ckptsurgeon.",
        )
    return names


def rule_matcher(rules: Sequence[Rule]) -> Callable[[str], list[int]]:
    """Return a function that returns the indices of the rules that match a key, in order."""
    matcher = KeyMatcher([rule.pattern for rule in rules if rule.pattern is not None])
    dotted = [i for i, rule in enumerate(rules) if rule.pattern is not None]
    always = [i for i, rule in enumerate(rules) if rule.pattern is None]
    return lambda key: sorted([dotted[i] for i in matcher.match(key)] + always)


def rename(keys: Sequence[str], rules: Sequence[Rule]) -> Renaming:
    """Return the new names of ``keys``, each renamed by the first rule that matches it, and by no other rule.

    A rule that renames no key is not an error here: it may rename keys of another source. ``check_shadowed`` finds the
    rules that match keys but come too late to rename any.
    """
    matching_rules = rule_matcher(rules)
    names: dict[str, tuple[str, ...]] = {}
    by: dict[str, int | None] = {}
    seen: dict[int, int] = dict.fromkeys(range(len(rules)), 0)
    won: set[int] = set()
    for key in keys:
        matching = matching_rules(key)
        for index in matching:
            seen[index] += 1
        by[key] = matching[0] if matching else None
        won.update(matching[:1])
        names[key] = _renamed(rules[matching[0]], key) if matching else (key,)
    shadowed = {index: number for index, number in seen.items() if number and index not in won}
    return Renaming(names, by, tuple(sorted(won)), shadowed)


def check_shadowed(rules: Sequence[Rule], renamings: Sequence[Renaming]) -> None:
    """Raise PatternError for a rule that matches keys of some source, if earlier rules rename all of them."""
    used = {index for renaming in renamings for index in renaming.used}
    for index, rule in enumerate(rules):
        number = sum(renaming.shadowed.get(index, 0) for renaming in renamings)
        if number and index not in used and not rule.lenient:
            raise PatternError(
                f"{rule.label} never applies: earlier rules rename all of its {count(number, 'key')}.",
                hint="Put this rule before the others, or leave the rule out.",
            )


_NONE: frozenset[tuple[int, int]] = frozenset()


@dataclass(slots=True)
class _MatcherState:
    """A state while a key is read segment by segment: the patterns that match, or that may still match.

    ``matched`` are the indices of the patterns that already match. ``waiting`` are the patterns that may still match:
    pairs of a pattern's index and the index of its next segment. ``after`` caches the state that follows each further
    segment.
    """

    matched: frozenset[int]
    waiting: frozenset[tuple[int, int]]
    after: dict[str, _MatcherState] = field(default_factory=dict)
    _words: dict[str, list[tuple[int, int]]] | None = field(default=None, init=False)
    """{word: waiting patterns whose next segment matches this word only}; the word "" has all other patterns."""

    def candidates(self, segment: str, patterns: Sequence[KeyPattern]) -> list[tuple[int, int]]:
        """Return the waiting patterns whose next segment may match ``segment``."""
        if self._words is None:
            self._words = defaultdict(list)
            for index, at in self.waiting:
                self._words[patterns[index].segments[at].only_word].append((index, at))
        return [*self._words.get("", ()), *(self._words.get(segment, ()) if segment else ())]


class KeyMatcher:
    """Finds the patterns that match each key."""

    def __init__(self, patterns: Sequence[KeyPattern]) -> None:
        self.patterns = tuple(patterns)
        self._dotted = [i for i, p in enumerate(self.patterns) if p.by_segment]
        self._single = [i for i, p in enumerate(self.patterns) if not p.by_segment]
        self._states: dict[tuple[frozenset[int], frozenset[tuple[int, int]]], _MatcherState] = {}
        self._start = self._state(frozenset(), {(i, 0) for i in self._dotted})

    def match(self, key: str) -> frozenset[int]:
        """Return the indices of the patterns that match ``key`` or a module that contains it."""
        state = self._start
        for segment in key.split(".") if state.waiting else ():
            state = state.after.get(segment) or self._step(state, segment)
            if not state.waiting:
                break
        if not self._single:
            return state.matched
        return state.matched.union(i for i in self._single if self.patterns[i].matches(key))

    def hits(self, keys: Iterable[str]) -> list[list[str]]:
        """Return, for each pattern, the keys that it matches, in the order of ``keys``."""
        if len(self.patterns) == 1 and (text := self.patterns[0].literal):  # most operations: many times faster
            inside = f"{text}."
            return [[key for key in keys if key == text or key.startswith(inside)]]
        found: list[list[str]] = [[] for _ in self.patterns]
        for key in keys:
            for index in self.match(key):
                found[index].append(key)
        return found

    def _step(self, state: _MatcherState, segment: str) -> _MatcherState:
        waiting: set[tuple[int, int]] = set()
        for index, at in state.candidates(segment, self.patterns):
            wanted = self.patterns[index].segments[at]
            if wanted is DOUBLE:
                waiting.add((index, at))
            elif wanted.matches(segment):
                waiting.add((index, at + 1))
        following = self._state(state.matched, waiting)
        state.after[segment] = following
        return following

    def _state(self, before: frozenset[int], waiting: set[tuple[int, int]]) -> _MatcherState:
        """Return the cached state with the patterns that already match and those that may still match.

        ``before`` has the indices of the patterns that match. ``waiting`` has pairs of a pattern's index and the index
        of its next segment. If the next segment is ``**``, the segment after it is added too, since ``**`` may match no
        segment at all.
        """
        if not waiting and (ended := self._states.get((before, _NONE))):  # this is where most keys lead soon
            return ended
        matched, closed = set(before), set[tuple[int, int]]()
        for index, at in waiting:
            segments = self.patterns[index].segments
            closed.add((index, at))
            while at < len(segments) and segments[at] is DOUBLE:
                at += 1
                closed.add((index, at))
            if at == len(segments):
                matched.add(index)
        if len(matched) > len(before):
            closed = {(i, at) for i, at in closed if i not in matched}
            before = frozenset(matched)
        known = (before, frozenset(closed))
        state = self._states.get(known)
        if state is None:
            state = self._states[known] = _MatcherState(*known)
        return state
