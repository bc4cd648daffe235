"""Measures how similar module paths are; finds the change of prefix that maps most paths of one model to another."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import log

import numpy as np
import numpy.typing as npt

from .module_groups import Unit, fits

__all__ = ["Likeness", "by_word", "moved", "words_of"]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SAME = {
    "q": "query k:key v:value",
    "attn": "attention att attns mha",
    "norm": "layernorm ln rmsnorm groupnorm batchnorm norms",
    "embed": "embedding embeddings emb embd embeds",
    "token": "word tok words tokens vocab wte",
    "position": "pos positional positions wpe",
    "segment": "type seg",
    "ff": "ffn mlp feedforward forward",
    "head": "classifier heads",
    "output": "out o",
    "encoder": "enc",
    "decoder": "dec",
    "project": "proj projection projector",
    "layer": "layers block blocks h blk resblocks",
    "vision": "visual",
    "linear": "dense fc lin",
    "mask": "masked",
    "codevectors": "vars codebook",
    "first": "intermediate up",
}
_CANONICAL = {other.partition(":")[2] or other: other.partition(":")[0] if ":" in other else name
              for name, others in _SAME.items() for other in others.split()}  # fmt: skip
_COMPOUND = {
    "fc1": "linear first", "fc2": "linear second", "linear1": "linear first", "linear2": "linear second",
    "norm1": "norm first", "norm2": "norm second", "ln1": "norm first", "ln2": "norm second", "lm_head": "head",
    "wq": "query project", "wk": "key project", "wv": "value project", "wo": "output project",
}  # fmt: skip

ROUNDING = 1e-6
"""An upper bound of the rounding error of a sum of word weights."""


@lru_cache(maxsize=65536)
def words_of(path: str) -> tuple[str, ...]:
    """Return the words of a module path in lower case, with synonyms such as ``attention`` and ``attn`` made equal."""
    words: list[str] = []
    for segment in path.split("."):
        text = _COMPOUND.get(segment, segment)
        for word in _WORD.findall(text.replace("_", " ")):
            low = word.lower()
            words.append(_CANONICAL.get(low, low))
    return tuple(words)


class Likeness:
    """Compares the names of the module groups of two state dicts by their words; rare words have more weight.

    The words of a group are those of its path, and words such as ``part gate`` if its modules may be this part of a
    transformer block. The weight of a word is larger the fewer groups have it. ``first`` and ``second`` are all groups
    of the two state dicts.
    """

    def __init__(self, first: Sequence[Unit], second: Sequence[Unit]) -> None:
        units = [*first, *second]
        seen = Counter(word for unit in units for word in set(_words(unit)))
        self._weights = {word: 0.1 + log(1 + len(units) / number) for word, number in seen.items()}

    def __call__(self, first: Sequence[Unit], second: Sequence[Unit]) -> npt.NDArray[np.float64]:
        """Return a matrix with the similarity of each group in ``first`` (rows) to each in ``second`` (columns).

        The similarity is 0 for groups without a common word, 1 for groups with the same words.
        """
        here, there = self._having(first), self._having(second)
        shared = np.zeros((len(first), len(second)))
        for word in here.keys() & there.keys():
            shared[np.ix_(here[word], there[word])] += self._weights[word[0]]
        whole = np.add.outer(self._whole(first), self._whole(second)) - shared
        return np.divide(shared, whole, out=np.ones_like(shared), where=whole > 0)

    def telling(self, unit: Unit, least: float) -> set[str]:
        """Return rare words of ``unit`` such that every group with a similar name has at least one of them.

        A name is similar if its similarity to ``unit`` is at least ``least``. The most frequent words of ``unit`` are
        left out, because together they weigh too little for such a similarity.
        """
        words = sorted(_words(unit), key=self._weights.__getitem__)
        spare = least * sum(map(self._weights.__getitem__, words)) - ROUNDING
        first = 0
        while first < len(words) and (spare := spare - self._weights[words[first]]) > 0:
            first += 1
        return set(words[first:])

    def _having(self, units: Sequence[Unit]) -> dict[tuple[str, int], list[int]]:
        """Return a mapping from (word, n) to the indices of the groups that have the word more than n times.

        n begins at 0.
        """
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for position, unit in enumerate(units):
            for word, number in Counter(_words(unit)).items():
                for time in range(number):
                    found[word, time].append(position)
        return found

    def _whole(self, units: Sequence[Unit]) -> npt.NDArray[np.float64]:
        return np.array([sum(self._weights[word] for word in _words(unit)) for unit in units])


def by_word(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    """Return a mapping from each word to the units (groups of modules) whose names contain it."""
    found: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        for word in set(_words(unit)):
            found[word].append(unit)
    return found


def _words(unit: Unit) -> tuple[str, ...]:
    """Return the words of a module group: those of its path, and words such as ``part gate``.

    ``part gate`` means that the modules of the group may be the gate of an MLP.
    """
    return (*words_of(unit.path), *(f"part {part}" for part in sorted(unit.parts)))


# Finds the change of leading segments (such as removing ``backbone.``) that maps most names to the other model's.

MANY = 8
"""A change of leading segments is accepted only if it pairs modules with at least this many tensors."""
DEEPEST = 4
"""The largest number of leading segments that may change."""

Moves = Mapping[Unit, Unit]


def moved(first: Sequence[Unit], second: Sequence[Unit]) -> Moves:
    """Return the pairs of modules whose paths become equal by one change of the leading segments (a prefix).

    Segments are the parts between dots. The pairs are returned only if they have at least ``MANY`` tensors, and at
    least half of the tensors of the smaller state dict. They must also have more than twice as many tensors as the
    contradicting pairs of any other change. Otherwise {} is returned.
    """
    fewer = min(sum(len(unit.keys) for unit in units) for units in (first, second))
    there = {unit.path: unit for unit in second}
    changes = [
        _moves(first, there, old, new)
        for old in _beginnings(first, fewer / 4)
        for new in _beginnings(second, fewer / 4)
        if old != new
    ]
    best = max(changes, key=_tensors, default={})
    if _tensors(best) < max(MANY, fewer / 2):
        return {}
    against = max(_tensors(_against(other, best)) for other in changes)
    return best if 2 * against < _tensors(best) else {}


def _beginnings(units: Sequence[Unit], least: float) -> list[str]:
    """Return the prefixes of paths that at least ``least`` tensors have; '' is the prefix of all tensors.

    A prefix has at most ``DEEPEST`` segments.
    """
    tensors: Counter[str] = Counter()
    for unit in units:
        parts = unit.path.split(".")
        for depth in range(min(len(parts), DEEPEST) + 1):
            tensors[".".join(parts[:depth])] += len(unit.keys)
    return [path for path, number in tensors.items() if number >= least]


def _moves(first: Sequence[Unit], there: Mapping[str, Unit], old: str, new: str) -> Moves:
    found: dict[Unit, Unit] = {}
    for unit in first:
        if not old or unit.path == old or unit.path.startswith(f"{old}."):
            other = there.get(f"{new}.{unit.path[len(old) :].removeprefix('.')}".strip("."))
            if other is not None and fits(unit, other):
                found[unit] = other
    return found


def _against(other: Moves, best: Moves) -> Moves:
    """Return the pairs of ``other`` that contradict ``best``: a module of the pair has another partner there."""
    taken = {b: a for a, b in best.items()}
    return {a: b for a, b in other.items() if best.get(a, b) is not b or taken.get(b, a) is not a}


def _tensors(moves: Moves) -> int:
    return sum(len(unit.keys) for unit in moves)
