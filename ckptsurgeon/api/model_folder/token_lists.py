"""Two files of one tokeniser that number its tokens otherwise: a note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ...errors import ConfigError, SourceError
from ...storage.read.uri import scheme_of
from ...util.text import brief_repr, escape
from ...vocabulary.read import vocabulary_of
from .file_names import VOCABULARIES
from .folder import LARGEST, ModelFolder

__all__ = ["token_list_notes"]

WHOLE, OLDER = VOCABULARIES[:2]


def token_list_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if vocab.json gives most rows to other tokens than tokenizer.json does.

    Nothing is said of files that would have to be fetched, or that cannot be read.
    """
    named = {one.name: one.path for one in folder.files}
    if not {WHOLE, OLDER} <= named.keys() or scheme_of(named[OLDER]) or folder.tokens is None:
        return
    theirs: tuple[str, ...] = ()
    with suppress(ConfigError, SourceError):
        theirs = vocabulary_of(OLDER, folder.read(OLDER, LARGEST)).tokens
    pairs = list(zip(theirs, folder.tokens, strict=False))
    other = [row for row, (one, two) in enumerate(pairs) if one != two]
    if len(other) * 2 > len(pairs):
        row = other[0]
        one, two = (escape(brief_repr(token)) for token in pairs[row])
        differ = f"have other tokens in {len(other)} of {len(pairs)} rows"
        yield f"{OLDER} and {WHOLE} {differ}: row {row} is {one} in {OLDER} and {two} in {WHOLE}"
