"""Notes on a tokenizer.json whose steps write spaces or split words in another way than its tokens need.

Byte-level BPE writes a space as Ġ, and each byte of other characters as a letter. sentencepiece writes a space as ▁.
WordPiece looks up words without spaces. If a tokeniser is loaded with a class for another kind and saved again, the
file has the tokens of one kind and the steps of the other.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count
from ....vocabulary.huggingface import byte_letters
from ..folder import ModelFolder
from .spelling import BYTES, INSIDE, SPACES, Spelling, steps_in, types_in
from .spelling import SHARE as OF_MARKS
from .tokenizer_files import SPECIAL, WHOLE, added_tokens, brief_token

__all__ = ["space_notes"]

SHARE = 50
"""If more than one token in 50 has foreign characters, the list was decoded with a wrong character encoding."""
STEPS = ("normalizer", "pre_tokenizer")
NORMALISE = frozenset((
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Strip", "StripAccents",
))  # fmt: skip
"""Types of normalisers that neither replace spaces by a mark nor split words."""
SPLIT = frozenset((
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Punctuation", "Split", "UnicodeScripts",
    "Whitespace", "WhitespaceSplit",
))  # fmt: skip
"""Types of pre-tokenisers that do not write a space as ▁."""
REMOVE = frozenset(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"))
"""Types of pre-tokenisers that split texts at spaces and remove the spaces."""
OF_SPACES = re.compile(r"(?: |\\s|\[ \]|\[\\s\])[+*]?")
"""Matches a regular expression that matches spaces only."""
NEGATED = re.compile(r"\[\^(?:\\.|[^\]\\])*\]")
"""Matches a negated character class, [^…], in a regular expression."""
WITH_SPACES = re.compile(r"(?<!\\)\.| |\\[sWDPSX]|\\x|\[:")
"""Matches parts of a regular expression, outside negated character classes, that may match a space."""


@notes_of(NoteKind.VOCABULARY)
def space_notes(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if the tokens have another mark of spaces than the normaliser and the pre-tokeniser write."""
    head = folder.tokenizer_head
    if head.keys().isdisjoint(STEPS):
        return
    types = {kind for name in STEPS for kind in types_in(head.get(name))}
    others = ", ".join(sorted(types)) or "none"
    if spelling.mark == BYTES and "ByteLevel" not in types:
        yield (
            f"{WHOLE} has byte-level tokens ({_examples(spelling)}), but no step of it "
            f"is ByteLevel ({others}): spaces and non-ASCII characters are lost or become wrong tokens"
        )
    elif spelling.mark == SPACES and "ByteLevel" in types:
        yield f"{_begin(spelling)}, but its ByteLevel step writes a space as {BYTES}: words become wrong tokens"
    elif spelling.mark == SPACES and not _writes_spaces(head):
        yield f"{_begin(spelling)}, but no step of it writes a space as {SPACES} ({others}): words become wrong tokens"
    elif spelling.mark == INSIDE:
        yield from _unsplit(head, spelling)
    elif spelling.mark and len(spelling.marked) * OF_MARKS > len(spelling.tokens) and (kind := _removes(head)):
        step = f"the {kind} step of {WHOLE} removes spaces before they are written as {spelling.mark}"
        never = "the tokeniser never produces these tokens"
        yield f"{step}, but its tokens have this mark ({_examples(spelling)}): {never}"
    elif "ByteLevel" in types and not spelling.mark:
        yield from _foreign(folder, spelling)


def _examples(spelling: Spelling) -> str:
    marked = spelling.marked
    return f"{brief_token(marked[0])}, and {len(marked) - 1} more" if marked else "a letter for each of the 256 bytes"


@notes_of(NoteKind.VOCABULARY)
def _foreign(folder: ModelFolder, spelling: Spelling) -> Iterator[str]:
    """Yield a note if many tokens have characters that ByteLevel never writes, because UTF-8 was decoded wrongly."""
    letters, added = byte_letters(), added_tokens(folder)
    own = [one for one in spelling.tokens if one not in added and not SPECIAL.fullmatch(one)]
    foreign = [one for one in own if not letters.issuperset(one)]
    if len(foreign) * SHARE > len(own):
        many = f"{len(foreign)} of its {len(own)} tokens have characters that byte-level BPE does not use"
        never = "the tokeniser never produces these tokens"
        yield f"{WHOLE} is byte-level, but {many}, for example {brief_token(foreign[0])}: {never}"


def _begin(spelling: Spelling) -> str:
    number = len(spelling.marked)
    return f"{WHOLE} has {count(number, 'token')} that begin{'s' if number == 1 else ''} with {spelling.mark}"


def _writes_spaces(head: Mapping[str, Any]) -> bool:
    """Return whether a step of the tokenizer.json with the sections ``head`` may write a space as ▁.

    A step of an unknown type may do so.
    """
    for step in (one for name in STEPS for one in steps_in(head.get(name))):
        kind = step.get("type")
        written = step.get({"Metaspace": "replacement", "Prepend": "prepend", "Replace": "content"}.get(str(kind), ""))
        if kind not in NORMALISE | SPLIT and (not isinstance(written, str) or SPACES in written):
            return True
    return False


def _removes(head: Mapping[str, Any]) -> str:
    """Return the type of a pre-tokeniser's step that removes spaces before they could be written as marks; else "".

    ``head`` has the sections of a tokenizer.json. The result is also "" if ByteLevel or Metaspace may put a mark before
    each word.
    """
    for step in steps_in(head.get("normalizer")):
        kind = step.get("type")
        if kind in ("ByteLevel", "Replace", "Prepend"):
            return ""  # this step writes the marks before a pre-tokeniser can remove spaces
    for step in steps_in(head.get("pre_tokenizer")):
        kind = str(step.get("type"))
        if kind in ("ByteLevel", "Metaspace"):
            return ""
        if kind in REMOVE or (kind == "CharDelimiterSplit" and step.get("delimiter") == " ") or _cuts_out(step):
            return "" if _marks_words(head) else kind
    return ""


def _marks_words(head: Mapping[str, Any]) -> bool:
    """Return whether the pre-tokeniser in ``head`` may put a mark before each word; an unknown step may do so."""
    for step in steps_in(head.get("pre_tokenizer")):
        kind, puts = step.get("type"), step.get("add_prefix_space", True) is not False
        if kind == "Metaspace" and step.get("prepend_scheme", "always" if puts else "never") != "never":
            return True
        if (kind == "ByteLevel" and puts) or kind not in SPLIT | {"Metaspace"}:
            return True
    return False


def _cuts_out(step: Mapping[str, Any]) -> bool:
    """Return whether a Split step removes all spaces: it removes exactly the spaces, or everything except words."""
    pattern = step.get("pattern")
    if step.get("type") != "Split" or str(step.get("behavior")).lower() != "removed" or not isinstance(pattern, dict):
        return False
    text = next(iter(pattern.values()), "")
    if not isinstance(text, str):
        return False
    if step.get("invert") is not True:
        return bool(OF_SPACES.fullmatch(text)) if "Regex" in pattern else text == " "
    classes, rest = NEGATED.findall(text), NEGATED.sub("", text)
    return all("\\s" in one or " " in one for one in classes) and not WITH_SPACES.search(rest)


@notes_of(NoteKind.VOCABULARY)
def _unsplit(head: Mapping[str, Any], spelling: Spelling) -> Iterator[str]:
    """Yield a note if words begin with a mark with which no WordPiece token begins, or if no step splits texts."""
    marks = {"ByteLevel": BYTES, "Metaspace": SPACES}
    types = types_in(head.get("pre_tokenizer"))
    for kind in sorted(marks.keys() & types):
        if not any(token[:1] == marks[kind] != token for token in spelling.tokens):
            writes = f"the {kind} step of {WHOLE} writes a space as {marks[kind]}"
            yield f"{writes}, but none of its WordPiece tokens begins with that: words become unknown"
            return
    normalises = NORMALISE.issuperset(types_in(head.get("normalizer")))
    if not types and "pre_tokenizer" in head and normalises and _is_of_words(spelling.tokens):
        has = f"{WHOLE} has WordPiece tokens ({_examples(spelling)})"
        yield f"{has}, but no pre_tokenizer, which splits texts into words: texts with spaces become unknown"


def _is_of_words(tokens: tuple[str, ...]) -> bool:
    """Return whether a token list has all letters from a to z, and no token that contains a space."""
    letters = {one.removeprefix(INSIDE) for one in tokens if len(one) <= 3}
    return letters.issuperset(string.ascii_lowercase) and not any(" " in one for one in tokens)
