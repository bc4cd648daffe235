"""Matches many patterns against many keys at once.

All patterns are matched together, segment by segment. A state says how much of each pattern has matched so far; the
state after a further segment is computed once and cached. This is a deterministic automaton that is built as keys need
it. It stays small, since even a very large checkpoint has few distinct segments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .pattern import KeyPattern
from .pattern_parser import DOUBLE

__all__ = ["KeyMatcher"]


@dataclass(slots=True)
class _MatcherState:
    """The patterns that match, or may still match, a key of which some segments have been read.

    ``matched`` are the indices of the patterns that already match. ``waiting`` are the patterns that may still match:
    pairs of a pattern's index and the index of its next segment. ``after`` caches the state that follows each further
    segment.
    """

    matched: frozenset[int]
    waiting: frozenset[tuple[int, int]]
    after: dict[str, _MatcherState] = field(default_factory=dict)


class KeyMatcher:
    """Finds the patterns that match each key."""

    def __init__(self, patterns: Sequence[KeyPattern]) -> None:
        self.patterns = tuple(patterns)
        self._dotted = [i for i, p in enumerate(self.patterns) if p.by_segment]
        self._single = [i for i, p in enumerate(self.patterns) if not p.by_segment]
        self._states: dict[tuple[frozenset[int], frozenset[tuple[int, int]]], _MatcherState] = {}
        self._start = self._state(set(), {(i, 0) for i in self._dotted})

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
        found: list[list[str]] = [[] for _ in self.patterns]
        for key in keys:
            for index in self.match(key):
                found[index].append(key)
        return found

    def _step(self, state: _MatcherState, segment: str) -> _MatcherState:
        waiting: set[tuple[int, int]] = set()
        for index, at in state.waiting:
            wanted = self.patterns[index].segments[at]
            if wanted is DOUBLE:
                waiting.add((index, at))
            elif wanted.matches(segment):
                waiting.add((index, at + 1))
        following = self._state(set(state.matched), waiting)
        state.after[segment] = following
        return following

    def _state(self, matched: set[int], waiting: set[tuple[int, int]]) -> _MatcherState:
        """Return the cached state with the patterns that already match and those that may still match.

        ``matched`` has the indices of the patterns that match. ``waiting`` has pairs of a pattern's index and the index
        of its next segment. If the next segment is ``**``, the segment after it is added too, since ``**`` may match no
        segment at all.
        """
        closed: set[tuple[int, int]] = set()
        for index, at in waiting:
            segments = self.patterns[index].segments
            closed.add((index, at))
            while at < len(segments) and segments[at] is DOUBLE:
                at += 1
                closed.add((index, at))
            if at == len(segments):
                matched.add(index)
        left = frozenset((i, at) for i, at in closed if i not in matched)
        known = (frozenset(matched), left)
        if known not in self._states:
            self._states[known] = _MatcherState(*known)
        return self._states[known]
