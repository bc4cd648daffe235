"""Checks the merge rules of a byte-level BPE tokeniser against its token list.

``vocab.json`` lists the tokens, ``merges.txt`` the pairs of tokens that are joined, in order; Hugging Face tokenizers
refuses a rule whose result is not listed. A ``tokenizer.json`` has both, and replaces the two files.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....errors import ConfigError, SourceError
from ....storage.read.uri import scheme_of
from ....util.text import brief_repr, count, listing
from ..folder import LARGEST, ModelFolder

__all__ = ["merge_rule_notes"]

MERGES, TOKENS, BOTH = "merges.txt", "vocab.json", "tokenizer.json"
SPACE = "Ġ"
"""The character that byte-level BPE writes for a space: the first of most tokens."""


def merge_rule_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ``merges.txt`` is missing beside a byte-level ``vocab.json``, or makes tokens that it lacks.

    No note is made of files that would have to be downloaded or cannot be read.
    """
    files = {file.name: file.path for file in folder.files}
    tokens = frozenset(folder.tokens or ()) if folder.vocabulary == TOKENS else frozenset[str]()
    if BOTH in files or not any(token[:1] == SPACE and token != SPACE for token in tokens):
        return
    if MERGES not in files:
        yield f"{TOKENS} is a list for byte-level BPE, and {MERGES} is missing: the tokeniser cannot be loaded"
    elif not scheme_of(files[MERGES]):
        yield from _unlisted(folder, tokens)


def _unlisted(folder: ModelFolder, tokens: frozenset[str]) -> Iterator[str]:
    made = _results(folder)
    unlisted = [token for token in made if token not in tokens]
    if unlisted:
        examples = listing([brief_repr(token, 24) for token in unlisted], 3, where="")
        yield (
            f"{len(unlisted)} of {count(len(made), 'rule')} in {MERGES} make tokens that {TOKENS} does not list, "
            f"so the tokeniser cannot be loaded: {examples}"
        )


def _results(folder: ModelFolder) -> list[str]:
    """Return the token that each rule makes, in the order of the file; none if the file cannot be read."""
    try:
        lines = folder.read(MERGES, LARGEST).decode().split("\n")
    except (ConfigError, SourceError, UnicodeDecodeError):
        return []
    rules = [line.rstrip("\r").split(" ") for line in lines if not line.startswith("#version")]
    return ["".join(rule) for rule in rules if len(rule) == 2 and all(rule)]
