"""One vocabulary in place of another, and token lists as files that are read back as they were."""

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

# Token lists as files that are read back as they were.

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""How an added token is described that nobody describes; as transformers does it."""


def token_file(tokens: Sequence[str]) -> tuple[str, str]:
    """Return the name and the text of a file with these tokens: one a line, or JSON where lines cannot spell one."""
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
    """Return a tokenizer.json with further tokens, None where that would not be exactly right.

    It is right for tokens that are added ones where they come from (``<|im_start|>``), matched before anything else and
    part of no word, and are described alike by all; a word or a piece of one is found by the model itself, with merges
    or scores, and cannot be added. Those that are ``asked`` for are added, whatever they are elsewhere.
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
    with suppress(ConfigError, PlanError):
        return vocabulary_beside(tokens_beside(folder or os.curdir))
    return None
