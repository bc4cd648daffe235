"""A vocabulary: the token of each row of an embedding or an output layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import ConfigError
from ..util.text import count, listing

__all__ = ["Reader", "Vocabulary", "checked"]

MOST = 4_000_000
"""Tokens that a list may have: no vocabulary has."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in the order of their rows.

    ``scores`` are log-probabilities where a unigram model has them; ``inside`` begins every piece of WordPiece that
    does not begin a word (``##``), and is empty for other kinds. It ``is_whole`` unless the ``tokeniser`` may have
    further tokens: then rows beyond these may be theirs.
    """

    name: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...] = ()
    inside: str = ""
    is_whole: bool = True
    tokeniser: str = ""


class Reader(Protocol):
    """A kind of file that holds a vocabulary. One module of this folder each, as ``VOCABULARY``."""

    def sniff(self, name: str, data: bytes) -> bool:
        """Whether a file of that name, with that content, is of this kind."""
        ...

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the vocabulary; raises ConfigError where the file is malformed."""
        ...


def checked(name: str, tokens: Sequence[str], scores: Sequence[float] = ()) -> Vocabulary:
    """Return a vocabulary; raises ConfigError where it is empty or a token stands twice."""
    if len(tokens) < 2:
        raise ConfigError(f"{name} holds {count(len(tokens), 'token')}.", hint="A vocabulary has two or more.")
    if len(tokens) > MOST:
        raise ConfigError(f"{name} holds over {MOST} tokens.")
    twice = [token for token, number in Counter(tokens).items() if number > 1] if len(set(tokens)) < len(tokens) else []
    if twice:
        raise ConfigError(f"{name} holds tokens twice: {listing([repr(token) for token in twice], where='')}.")
    return Vocabulary(name, tuple(tokens), tuple(scores))
