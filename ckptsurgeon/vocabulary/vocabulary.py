"""Defines a vocabulary: the token of each row of an embedding or an output layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError
from ..util.text import count, listing

__all__ = ["Reader", "Vocabulary", "checked"]

MOST = 4_000_000
"""The most tokens of a list: no vocabulary has so many."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in the order of their rows.

    ``scores`` are log-probabilities where a unigram model has them; ``inside`` begins every piece of WordPiece that
    does not begin a word (``##``), and is empty for other kinds. It ``is_whole`` unless the ``tokeniser`` may have
    further tokens: then rows beyond these may be theirs. ``rules`` is the number of its merge rules, and ``unlisted``
    has the tokens that these join or make and the list lacks.
    """

    name: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...] = ()
    inside: str = ""
    is_whole: bool = True
    tokeniser: str = ""
    rules: int = 0
    unlisted: tuple[str, ...] = ()


class Reader(Protocol):
    """A kind of file that holds a vocabulary. One module of this folder each, as ``VOCABULARY``."""

    def sniff(self, name: str, data: bytes) -> bool:
        """Return whether a file of that name, with that content, is of this kind."""
        ...

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the vocabulary; raises ConfigError if the file is malformed."""
        ...


def checked(name: str, tokens: Sequence[str], scores: Sequence[float] = ()) -> Vocabulary:
    """Return a vocabulary; raises ConfigError if it is empty or a token occurs twice."""
    if len(tokens) < 2:
        raise ConfigError(f"{name} has {count(len(tokens), 'token')}.", hint="A vocabulary needs at least two tokens.")
    if len(tokens) > MOST:
        raise ConfigError(f"{name} has more tokens than the limit of {MOST}.")
    twice = [token for token, number in Counter(tokens).items() if number > 1] if len(set(tokens)) < len(tokens) else []
    if twice:
        raise ConfigError(f"{name} has tokens twice: {listing([repr(token) for token in twice], where='')}.")
    return Vocabulary(name, tuple(tokens), tuple(scores))
