"""Replaces one vocabulary by another, and writes token lists so that reading gives the same list."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, PlanError
from . import huggingface, plain
from .read import read_vocabulary, tokens_beside, vocabulary_beside
from .token_ids import Renumbering
from .vocabulary import Vocabulary

__all__ = ["NewVocabulary", "token_file", "tokens_at", "with_added_tokens"]

# Writes token lists so that reading gives the same list.

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""The default description of an added token, as in transformers."""


def token_file(tokens: Sequence[str]) -> tuple[str, str]:
    """Return the name and the text of a file with these tokens: one a line, or JSON if a token does not fit a line."""
    text = "".join(f"{token}\n" for token in tokens)
    try:
        if plain.VOCABULARY.read("tokens.txt", text.encode()).tokens == tuple(tokens):
            return "tokens.txt", text
    except (ConfigError, UnicodeEncodeError):
        pass
    numbers = {token: number for number, token in enumerate(tokens)}
    return "vocab.json", json.dumps(numbers, indent=0) + "\n"


def with_added_tokens(
    base: bytes, others: Sequence[bytes], tokens: Sequence[str], asked: Collection[str] = ()
) -> str | None:
    """Return a tokenizer.json with further tokens, None if the result would not be exact.

    It is exact for tokens that are added tokens in their own tokeniser (``<|im_start|>``), matched before anything else
    and part of no word, and have the same description in all; a word or a piece of one is found by the model itself,
    with merges or scores, and cannot be added. Those in ``asked`` are always added.
    """
    document = json.loads(base)
    number = len(huggingface.VOCABULARY.read("tokenizer.json", base).tokens)
    found: dict[str, dict[str, Any]] = {}
    for row in (row for other in others for row in json.loads(other).get("added_tokens") or ()):
        said = {name: value for name, value in row.items() if name != "id"}
        if found.setdefault(str(row.get("content")), said) != said:
            return None
    if any(token not in found and token not in asked for token in tokens[number:]):
        return None
    rows = [
        {"id": number + place, **found.get(token, {"content": token, **PLAIN})}
        for place, token in enumerate(tokens[number:])
    ]
    document["added_tokens"] = [*(document.get("added_tokens") or ()), *rows]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


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
        """Return both lists read, the source's and the new one, each with the tokens that its tokeniser added.

        Raises ConfigError if they cannot be read.
        """
        source, new = paths
        return NewVocabulary(_whole(source), _whole(new), (source, new), parts or {})

    def renumbering(self, own: Vocabulary | None, rows: int) -> Renumbering | None:
        """Return the renumbering for a configuration with ``rows`` and, if there is one, its ``own`` list next to it.

        None if its ids are those of the new list already. Raises LookupError if the list of its ids is unknown.
        """
        if own is not None:
            same = own.tokens == self.new.tokens
            return None if same else Renumbering.of(own.tokens, self.new.tokens, self.parts)
        if rows == len(self.new.tokens):
            return None
        if rows == len(self.source.tokens):
            return Renumbering.of(self.source.tokens, self.new.tokens, self.parts)
        raise LookupError("there is no token list next to it")


def _whole(path: str) -> Vocabulary:
    try:
        return vocabulary_beside(path)
    except ConfigError:  # the file next to it does not continue the list
        return read_vocabulary(path)


def tokens_at(folder: str) -> Vocabulary | None:
    """Return the vocabulary whose list lies in a folder of this machine, None if there is none that can be read."""
    with suppress(ConfigError, PlanError):
        return vocabulary_beside(tokens_beside(folder or os.curdir))
    return None
