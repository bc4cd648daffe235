"""``--vocab`` of a merge: the token lists of the models, and that of the output."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..planners import MergeVocabulary
from ..text import escape
from ..vocabulary import Vocabulary, read_vocabulary, rows_in, tokens_beside, united
from .types import Patterns, Rules
from .vocabularies import vocabulary_key

__all__ = ["ModelTokens", "VocabularyAsked", "merge_vocabulary"]

UNION, BASE = "union", "base"


@dataclass(frozen=True)
class VocabularyAsked:
    """The vocabulary that an output is to have, the token lists of the models, the tensors that go by them."""

    vocab: str | None = None
    tokens: Rules = ()
    keys: Patterns = ()

    @property
    def said(self) -> dict[str, Any]:
        """What a recipe records of it: of a file its name alone."""
        known = self.vocab is None or self.vocab.lower() in (UNION, BASE)
        return {"vocab": self.vocab if known else os.path.basename(str(self.vocab)), "vocab_keys": self.keys}


@dataclass(frozen=True)
class ModelTokens:
    """The token lists of the models of a merge, the first whose order the output has first; the output's own.

    ``of`` is the number of the one list that the output's is, None for a union; ``path`` the file that has it.
    """

    paths: tuple[str, ...]
    lists: tuple[Vocabulary, ...]
    output: Vocabulary
    of: int | None
    path: str = ""


def merge_vocabulary(
    asked: VocabularyAsked, models: Sequence[str], names: Sequence[str], *, first: int
) -> tuple[MergeVocabulary, ModelTokens] | None:
    """Return the vocabularies of a merge, None where none is asked for.

    ``models`` are paths, ``names`` what they are called; ``first`` is the number of the base, or the first model.
    Raises ConfigError for a list that there is not, PatternError for a pattern that cannot be understood.
    """
    vocab, tokens = asked.vocab, asked.tokens
    named = [asked.keys] if isinstance(asked.keys, str) else list(asked.keys or ())
    if vocab is None:
        if named or tokens:
            raise ConfigError("--tokens and --vocab-keys go with --vocab.", hint="Write --vocab union, base or a FILE.")
        return None
    found = _paths(models, names, tokens)
    lists = tuple(replace(read_vocabulary(path), name=name) for path, name in zip(found, names, strict=True))
    order = [first, *(number for number in range(len(models)) if number != first)]
    of: int | None = None
    if vocab.lower() == UNION:
        output, path = united([lists[number] for number in order]), ""
    elif vocab.lower() == BASE:
        output, path, of = lists[first], found[first], first
    else:
        output, path = read_vocabulary(vocab), vocab
    if of is None:  # a union may add nothing to one list
        of = next((number for number in order if lists[number].tokens == output.tokens), None)
        path = path or (found[of] if of is not None else "")
    rows = tuple(rows_in(one, output) for one in lists)
    chosen = MergeVocabulary(rows, output.tokens, tuple(vocabulary_key(text) for text in named))
    return chosen, ModelTokens(tuple(found), lists, output, of, path)


def _paths(models: Sequence[str], names: Sequence[str], tokens: Rules) -> list[str]:
    """Return the path of each model's list: as named, else as it lies beside the model."""
    pairs = (
        tokens.items() if isinstance(tokens, Mapping) else [_pair(text, (*models, *names)) for text in _texts(tokens)]
    )
    given: dict[str, str] = {}
    for model, path in pairs:
        if model not in (*models, *names):
            raise ConfigError(
                f"--tokens {escape(model)}: there is no such model.", hint=f"There are {', '.join(map(escape, names))}."
            )
        if model in given:
            raise ConfigError(f"--tokens gives {escape(model)} two lists.")
        given[model] = os.fspath(path)
    return [
        given.get(name) or given.get(model) or tokens_beside(model) for model, name in zip(models, names, strict=True)
    ]


def _texts(tokens: Iterable[str] | None) -> list[str]:
    return [tokens] if isinstance(tokens, str) else list(tokens or ())


def _pair(text: str, known: Sequence[str]) -> tuple[str, str]:
    """Cut MODEL=LIST at the "=" before which a model's name or path stands."""
    places = [at for at, char in enumerate(text) if char == "="]
    cuts = [(text[:at], text[at + 1 :]) for at in places]
    if not cuts or not all(cuts[0]):
        raise ConfigError(f"--tokens {escape(text)} is no pair.", hint="Write --tokens MODEL=LIST.")
    return next((cut for cut in cuts if cut[0] in known), cuts[0])
