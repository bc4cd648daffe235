"""Defines a vocabulary, the token of each row of an embedding or an output layer; reads it from a file of any toolkit.

Plain lists are read here; each other kind of file has a module of this folder with a ``VOCABULARY``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakValueDictionary

from ..errors import ConfigError
from ..storage.small_files import read_file, stand_in
from ..util.did_you_mean import did_you_mean
from ..util.registry import discover
from ..util.text import brief_repr, count, escape, listing
from .rule_order import RuleOrder

__all__ = [
    "ALL",
    "BYTES",
    "GAP",
    "HEAD",
    "INSIDE",
    "MOST",
    "PLAIN_LIST",
    "TAIL",
    "TWICE",
    "VOCABULARY_BYTES",
    "Marks",
    "Reader",
    "Vocabulary",
    "checked",
    "digest_of_tokens",
    "has_marks",
    "lines_of",
    "marked",
    "read_vocabulary",
    "vocabulary_of",
]

MOST = 4_000_000
"""The largest number of tokens that a list may have; real vocabularies have fewer."""
TWICE = "has tokens twice"
"""A part of the message about a list in which a token has two ids."""
GAP = "but no token with the id"
"""A part of the message about a list that skips ids."""
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


BYTES = "bytes"
"""A path that means the vocabulary of Coqui STT's bytes mode: label n is the byte n + 1, and the blank is last."""
VOCABULARY_BYTES = 256 << 20
"""The largest token list that is read, in bytes: more than any tokenizer.json has, with all merges."""


def read_vocabulary(path: str) -> Vocabulary:
    """Return the vocabulary in a file of any toolkit; for ``bytes``, return the vocabulary of Coqui STT's bytes mode.

    A file with the name ``bytes`` must be given as ``./bytes``. Raises ConfigError if the file cannot be read, is
    malformed or has a token twice.
    """
    if path == BYTES:
        return checked(BYTES, [*(f"<0x{byte:02X}>" for byte in range(1, 256)), "<blank>"])
    try:
        data = read_file(path, VOCABULARY_BYTES)
    except OSError as error:
        said = f"the vocabulary {escape(path)} cannot be read: {error.strerror}."
        raise ConfigError(said, hint=did_you_mean(path)) from error
    return vocabulary_of(os.path.basename(path), data)


_IN_USE: WeakValueDictionary[tuple[str, bytes], Vocabulary] = WeakValueDictionary()
"""The vocabularies in use, by file name and digest: a command opens a folder several times, and lists are megabytes."""


def vocabulary_of(filename: str, data: bytes) -> Vocabulary:
    """Return the vocabulary in a file; raises ConfigError if it is malformed, a Git LFS pointer or a web page."""
    place = filename, hashlib.sha256(data).digest()
    found = _IN_USE.get(place)
    if found is None:
        found = _IN_USE[place] = _vocabulary_of(filename, data)
    return found


def _vocabulary_of(filename: str, data: bytes) -> Vocabulary:
    name = escape(filename)
    if why := stand_in(data):
        raise ConfigError(f"{name} is not a list of tokens: {why}.")
    kinds = cast("dict[str, Reader]", discover("ckptsurgeon.vocabulary", "VOCABULARY"))
    for reader in kinds.values():
        if has_marks(reader, filename, data):
            return reader.read(name, data)
    if name.lower().endswith(".json"):
        raise ConfigError(f"{name} is not a vocabulary: it is not a JSON object that maps each token to its id.")
    return PLAIN_LIST.read(name, data)


WORDPIECE = "vocab.txt"
_NUMBERED = re.compile(r"(.+?)[ \t]+(0|[1-9][0-9]{0,17})")
FEWEST = 9
MOST_OF = 0.9
"""A list is one with indices if so many of its lines, and this share of them, have an index."""


def lines_of(name: str, data: bytes) -> list[str]:
    """Return the lines of a UTF-8 text, with any line endings; raises ConfigError if it is not UTF-8 or has NULs."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ConfigError(
            f"{name} is not a list of tokens: it is not UTF-8.",
            hint="Give a text file in UTF-8, with one token on each line.",
        ) from None
    if "\0" in text:
        raise ConfigError(
            f"{name} is not a list of tokens: it contains zero bytes, so it is not text.",
            hint="Give a text file in UTF-8, with one token on each line.",
        )
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


class _Plain:
    """Reads a text file with one token on each line, such as ESPnet's ``tokens.txt``."""

    marks: tuple[Marks, ...] = ()
    """No marks: this reader reads the files in which no other reader finds its marks."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the non-empty lines as tokens.

        If each line is ``token index`` (Kaldi's words.txt), the tokens are sorted by index. In a vocab.txt (BERT), an
        empty line before the last token is a token, too, as in transformers. Raises ConfigError if a few lines of a
        long list lack the index that the others have.
        """
        lines = lines_of(name, data)
        while lines and not lines[-1]:
            lines.pop()
        if name != WORDPIECE or _UNKNOWN not in lines:
            lines = [line for line in lines if line]
        found = [match for match in map(_NUMBERED.fullmatch, lines) if match is not None]
        if len(lines) > 1 and len(found) == len(lines):
            lines = _by_number(name, [(match[1], int(match[2])) for match in found])
        elif _are_indexed(found, len(lines)):
            number, line = next((n, line) for n, line in enumerate(lines, 1) if not _NUMBERED.fullmatch(line))
            raise ConfigError(
                f"{name}: entry {number}, {brief_repr(line, 40)}, has no index, but {len(found)} of {len(lines)} have "
                "one.",
                hint="Correct this line. If the numbers are parts of the tokens, give the list as a vocab.json.",
            )
        return marked(checked(name, lines))


def _are_indexed(found: Sequence[re.Match[str]], lines: int) -> bool:
    """Return whether nearly all of a list's ``lines`` are a token and its index, all different, as in ``found``."""
    if len(found) < MOST_OF * lines or len(found) < FEWEST:
        return False
    return len({match[1] for match in found}) == len({match[2] for match in found}) == len(found)


def _by_number(name: str, pairs: Sequence[tuple[str, int]]) -> list[str]:
    """Return the tokens sorted by index, from 0 or 1 on; raises ConfigError if an index is missing or occurs twice."""
    tokens: dict[int, str] = {}
    hint = "If the numbers are parts of the tokens, give the list as a vocab.json."
    for token, number in pairs:
        if number in tokens:
            both = f"{brief_repr(tokens[number], 40)} and {brief_repr(token, 40)}"
            raise ConfigError(f"{name} has two tokens with the index {number}: {both}.", hint=hint)
        tokens[number] = token
    first = 0 if 0 in tokens else 1
    numbers = range(first, first + len(tokens))
    absent = next((number for number in numbers if number not in tokens), None)
    if absent is not None:
        raise ConfigError(f"{name} has {len(tokens)} tokens, but no token with the index {absent}.", hint=hint)
    return [tokens[number] for number in numbers]


PLAIN_LIST = _Plain()
"""The reader of plain lists of tokens: of each file that has the marks of no other kind."""
