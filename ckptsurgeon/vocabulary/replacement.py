"""One vocabulary in place of another: the two lists of ``--vocab``, and what plays whose part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import ConfigError
from .discover import tokens_beside, vocabulary_beside
from .read import read_vocabulary
from .token_ids import Renumbering
from .vocabulary import Vocabulary

__all__ = ["NewVocabulary", "tokens_at"]


@dataclass(frozen=True)
class NewVocabulary:
    """The vocabulary ``new`` that a model gets in place of ``source``'s; ``paths`` are the files of the two lists.

    ``parts`` maps tokens of the source to the tokens of the new list that play their part.
    """

    source: Vocabulary
    new: Vocabulary
    paths: tuple[str, str]
    parts: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def at(paths: Sequence[str], parts: Mapping[str, str] | None = None) -> NewVocabulary:
        """Read two lists, the source's and the new one, each with the tokens that its tokeniser added beside it.

        Raises ConfigError if they cannot be read.
        """
        source, new = paths
        return NewVocabulary(_whole(source), _whole(new), (source, new), parts or {})

    def renumbering(self, own: Vocabulary | None, rows: int) -> Renumbering | None:
        """Return how token ids of a configuration move that has ``rows`` and its ``own`` list beside it, if any.

        None if its ids are those of the new list already. Raises LookupError if nothing tells whose ids they are.
        """
        if own is not None:
            same = own.tokens == self.new.tokens
            return None if same else Renumbering.of(own.tokens, self.new.tokens, self.parts)
        if rows == len(self.new.tokens):
            return None
        if rows == len(self.source.tokens):
            return Renumbering.of(self.source.tokens, self.new.tokens, self.parts)
        raise LookupError("no token list lies beside it")


def _whole(path: str) -> Vocabulary:
    try:
        return vocabulary_beside(path)
    except ConfigError:  # what lies beside it does not go on where it ends
        return read_vocabulary(path)


def tokens_at(folder: str) -> Vocabulary | None:
    """Return the vocabulary whose list lies in a folder of this machine, None if there is none that can be read."""
    with suppress(ConfigError):
        return vocabulary_beside(tokens_beside(folder or os.curdir))
    return None
