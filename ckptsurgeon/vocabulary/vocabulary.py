"""Defines a vocabulary: the token of each row of an embedding or an output layer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from ..errors import ConfigError
from ..util.text import count, listing
from .rule_order import RuleOrder

__all__ = [
    "ALL",
    "HEAD",
    "INSIDE",
    "TAIL",
    "TWICE",
    "Marks",
    "Reader",
    "Vocabulary",
    "checked",
    "digest_of_tokens",
    "has_marks",
    "marked",
]

MOST = 4_000_000
"""The largest number of tokens that a list may have; real vocabularies have fewer."""
TWICE = "has tokens twice"
"""A part of the message about a list in which a token has two ids."""
INSIDE, _UNKNOWN = "##", "[UNK]"
"""The prefix of pieces that do not begin a word, and the unknown token, in a WordPiece vocabulary such as BERT's."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in the order of their rows.

    ``scores`` are the log-probabilities of a unigram model, empty for other kinds. ``inside`` is the prefix of
    WordPiece tokens that do not begin a word (``##``), empty for other kinds. ``is_whole`` is false if the order of
    the rows is not known, or if the tokeniser may have further tokens. ``tokeniser`` is the class of the tokeniser, or
    the model type. ``rules`` is the number of the merge rules of a BPE tokeniser. ``unlisted`` has the tokens that the
    rules need and the list lacks. ``unmade`` is the number of tokens with several letters that no rule makes.

    The other fields come from the section ``model`` of a tokenizer.json. ``kind`` is its type: BPE, Unigram, WordPiece,
    WordLevel. ``model`` has its strings, numbers, booleans and nulls. ``lacks_unknown`` is true if the unknown token is
    not in the section's list of tokens, which does not include added tokens. ``piece_scores`` are the log-probabilities
    of that list, in its order. ``rule_hash`` is a hash of the merge rules in their order; it differs from process to
    process. ``order`` says how well the ids of tokens follow the order of the merge rules that make the tokens.
    """

    name: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...] = ()
    inside: str = ""
    is_whole: bool = True
    tokeniser: str = ""
    rules: int = 0
    unlisted: tuple[str, ...] = ()
    unmade: int = 0
    kind: str = ""
    model: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    lacks_unknown: bool = False
    piece_scores: tuple[float, ...] = field(default=(), hash=False, compare=False)
    rule_hash: int = field(default=0, hash=False, compare=False)
    order: RuleOrder = field(default=RuleOrder(), hash=False, compare=False)


HEAD, TAIL, ALL = slice(4096), slice(-4096, None), slice(None)
"""Parts of a file's content: its first bytes, its last bytes, all of it."""


class Marks(NamedTuple):
    """The marks of a kind of vocabulary file; a file of this kind has all of them.

    ``name`` is a pattern that the whole file name matches. ``content`` are patterns, each with the part of the file in
    which it is found.
    """

    name: str = ".*"
    content: tuple[tuple[re.Pattern[bytes], slice], ...] = ()


class Reader(Protocol):
    """The reader of one kind of vocabulary file; each module for a kind of file has one, named ``VOCABULARY``."""

    @property
    def marks(self) -> tuple[Marks, ...]:
        """The marks of these files; a file is of this kind if it has the marks in any of the entries."""
        ...

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the vocabulary; raises ConfigError if the file is malformed."""
        ...


def has_marks(reader: Reader, name: str, data: bytes) -> bool:
    """Return whether a file with this name and content is of the kind that ``reader`` reads."""
    return any(
        re.fullmatch(marks.name, name, re.DOTALL) and all(pattern.search(data[part]) for pattern, part in marks.content)
        for marks in reader.marks
    )


def checked(name: str, tokens: Sequence[str], scores: Sequence[float] = ()) -> Vocabulary:
    """Return a vocabulary; raises ConfigError if it has fewer than two tokens, too many tokens, or a token twice."""
    if len(tokens) < 2:
        raise ConfigError(
            f"the vocabulary {name} has {count(len(tokens), 'token')}, but at least two are needed.",
            hint="Give the complete token list of the model.",
        )
    if len(tokens) > MOST:
        raise ConfigError(f"{name} has more tokens than the limit of {MOST}.")
    twice = [token for token, number in Counter(tokens).items() if number > 1] if len(set(tokens)) < len(tokens) else []
    if twice:
        raise ConfigError(f"{name} {TWICE}: {listing([repr(token) for token in twice], where='')}.")
    return Vocabulary(name, tuple(tokens), tuple(scores))


def marked(vocabulary: Vocabulary) -> Vocabulary:
    """Return ``vocabulary`` with the prefix ``##`` in its field ``inside`` if it has tokens of WordPiece.

    Other vocabularies are returned unchanged.
    """
    tokens = vocabulary.tokens
    is_wordpiece = _UNKNOWN in tokens and any(token.startswith(INSIDE) and token.strip("#") for token in tokens)
    return replace(vocabulary, inside=INSIDE) if is_wordpiece else vocabulary


def digest_of_tokens(tokens: Iterable[str]) -> str:
    """Return the SHA-256 of a list of tokens; it does not depend on the format of the file that has the list."""
    made = hashlib.sha256()
    for token in tokens:
        made.update(json.dumps(token).encode() + b"\n")
    return made.hexdigest()
