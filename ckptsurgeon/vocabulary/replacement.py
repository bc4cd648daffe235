"""Describes the vocabulary that replaces a model's vocabulary; writes token lists that are read back unchanged."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, PlanError
from ..planning.target import Companion
from ..util.text import count, escape
from . import huggingface
from .beside_model import read_lists, tokens_beside, vocabulary_beside
from .renumbering import Renumbering
from .vocabulary import PLAIN_LIST, Vocabulary, read_vocabulary

__all__ = ["NewVocabulary", "token_file", "tokens_at", "with_added_tokens"]

# Writes token lists that are read back unchanged.

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""The default properties of an added token in a tokenizer.json, as in transformers."""


def token_file(tokens: Sequence[str]) -> tuple[str, str]:
    """Return the name and text of a token list: one token on each line, or JSON if a token cannot be a line."""
    text = "".join(f"{token}\n" for token in tokens)
    try:
        if PLAIN_LIST.read("tokens.txt", text.encode()).tokens == tuple(tokens):
            return "tokens.txt", text
    except (ConfigError, UnicodeEncodeError):
        pass
    numbers = {token: number for number, token in enumerate(tokens)}
    return "vocab.json", json.dumps(numbers, indent=0) + "\n"


def with_added_tokens(
    base: bytes, others: Sequence[bytes], tokens: Sequence[str], asked: Collection[str] = ()
) -> str | None:
    """Return the tokenizer.json ``base`` with more tokens added; None if texts would be split differently.

    ``tokens`` is the whole token list of the result, in the order of ids: the tokens of ``base``, then the new tokens.
    ``others`` are the tokenizer.json files that have the new tokens. A new token can be added if it is an added token
    of these files (``<|im_start|>``), because added tokens are matched before a text is split. The token must have the
    same properties in all ``others``. Words and pieces of words cannot be added, because the tokeniser finds them by
    merges or scores: the result is then None. Tokens in ``asked`` are added in any case, even words.
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
    """The vocabulary ``new`` that a model gets in place of ``source``; ``paths`` has the files of both.

    ``spelled`` maps tokens of the source to new tokens with the same role but another name. If the new tokeniser was
    made from the tokeniser of the source, ``files`` are the files of the new tokeniser, and both ``paths`` are the
    same: the file of the source's token list.
    """

    source: Vocabulary
    new: Vocabulary
    paths: tuple[str, str]
    spelled: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Companion, ...] = ()

    @staticmethod
    def at(paths: Sequence[str], spelled: Mapping[str, str] | None = None) -> NewVocabulary:
        """Return the NewVocabulary for ``paths``, the files of the source's token list and of the new token list.

        Added tokens in other files of the same folders are included. Raises ConfigError if a list cannot be read.
        """
        source, new = paths
        old_list, new_list = read_lists((source, new), _whole)
        return NewVocabulary(old_list, new_list, (source, new), spelled or {})

    @property
    def lists(self) -> tuple[str, ...]:
        """The files of the two lists; only the first file if the new tokeniser was made from it."""
        return self.paths[:1] if self.files else self.paths

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two lists in messages: their file names, or their paths if the file names are equal."""
        return self.paths if self.source.name == self.new.name else (self.source.name, self.new.name)

    def renumbering(self, own: Vocabulary | None, rows: int) -> Renumbering | None:
        """Return the map from old to new ids for the token ids in a configuration with the vocabulary size ``rows``.

        ``own`` is the token list in the folder of the configuration, None if it has none that can be read. Returns None
        if the configuration already has the ids of the new list. Raises LookupError if it is not known to which list
        these ids belong.
        """
        if own is not None:
            same = own.tokens == self.new.tokens
            return None if same else Renumbering.of(own.tokens, self.new.tokens, self.spelled)
        is_old, is_new = rows == len(self.source.tokens), rows == len(self.new.tokens)
        if is_new and (not is_old or self.source.tokens == self.new.tokens):
            return None
        if is_old and not is_new:
            return Renumbering.of(self.source.tokens, self.new.tokens, self.spelled)
        why = f"its vocabulary size is {rows}, and both lists have " + ("this length" if is_old else "another length")
        raise LookupError(
            f"the folder of the configuration has no token list that can be read, {why}: {escape(self.paths[0])} has "
            f"{count(len(self.source.tokens), 'token')}, and {escape(self.paths[1])} has {len(self.new.tokens)}"
        )


def _whole(path: str) -> Vocabulary:
    try:
        return vocabulary_beside(path)
    except ConfigError:  # added tokens in another file do not continue the list
        return read_vocabulary(path)


def tokens_at(folder: str) -> Vocabulary | None:
    """Return the vocabulary in a local folder; None if the folder has no token list, or none that can be read."""
    with suppress(ConfigError, PlanError):
        return vocabulary_beside(tokens_beside(folder or os.curdir))
    return None
