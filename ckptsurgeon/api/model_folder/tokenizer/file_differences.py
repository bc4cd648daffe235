"""Notes of ``ckpt diff`` on tokeniser files that differ in something that no other note mentions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....errors import CheckpointError
from ....storage.read.uri import read_small, scheme_of
from ....util.text import brief_repr, escape, listing
from ..documents import CHAT, TOKENIZER
from ..folder import LARGEST, ModelFolder
from .text_differences import FIELDS, first_difference
from .tokenizer_files import WHOLE

__all__ = ["tokenizer_differences"]

ADDED = "added_tokens"
SECTIONS = {
    ADDED: "", "normalizer": "normalise texts", "pre_tokenizer": "normalise texts",
    "post_processor": "add different special tokens", "decoder": "decode texts", "truncation": "", "padding": "",
}  # fmt: skip
"""{section of tokenizer.json: words that every other note on this section contains}; '' if there are no other notes."""
ELSEWHERE = frozenset((WHOLE, TOKENIZER, CHAT))
"""Files that are not compared byte by byte, but by their content."""
IGNORED = frozenset(
    (
        "chat_template", "is_local", "local_files_only", "name_or_path", "special_tokens_map_file", "tokenizer_file",
        "transformers_version", *FIELDS,
    )
)  # fmt: skip
"""Fields of tokenizer_config.json that other notes compare, or that say only where and how files were read."""
LONGEST = 60
"""The largest number of characters of a value that a note shows."""


def tokenizer_differences(
    first: str, one: ModelFolder, second: str, other: ModelFolder, told: Collection[str]
) -> Iterator[str]:
    """Yield notes on local tokeniser files that differ between two folders, at most one for each section and each file.

    ``first`` is the name of the model in the folder ``one``, and ``second`` the name of the model in ``other``.
    ``told`` are the other notes on the two tokenisers: sections that these notes mention are left out. If the token
    lists differ, ids of added tokens are not compared, nor are added tokens that only one of the models has.
    """
    here, there = one.tokenizer_head, other.tokenizer_head
    is_alike = one.has_tokens_of(other)
    for section, words in SECTIONS.items() if here and there else ():
        if not any((words and words in note) or f"{WHOLE}: {section}" in note for note in told):
            mine, theirs = _by_token(here.get(section)), _by_token(there.get(section))
            if section == ADDED and not is_alike:
                mine, theirs = _shared(mine, theirs), _shared(theirs, mine)
            yield from _told(WHOLE, first_difference(section, mine, theirs), first, second)
    if TOKENIZER in _names(one) & _names(other):
        yield from _on_fields(_fields(one), _fields(other), first, second)
    yield from _only_template(first, one, second, other)
    lists = {folder.vocabulary for folder in (one, other) if not _has_more(folder.vocabulary, one, other)}
    names = [name for name in sorted(_names(one) & _names(other) - ELSEWHERE - lists) if _differ(name, one, other)]
    if names:
        differ = "differs" if len(names) == 1 else "differ"
        yield f"the tokenisers differ: {listing(names, where='')} {differ} between {escape(first)} and {escape(second)}"


def _told(file: str, found: tuple[str, Any, Any] | None, first: str, second: str) -> Iterator[str]:
    if found is not None:
        path, mine, theirs = found
        values = f"{_said(mine)} in {escape(first)}, {_said(theirs)} in {escape(second)}"
        yield f"the tokenisers differ, according to {file}: {escape(path.removeprefix('.'), LONGEST)} is {values}"


def _on_fields(one: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> Iterator[str]:
    """Yield a note on the fields of tokenizer_config.json that differ between two models.

    The note has both values of the first field that differs, and the names of the other fields.
    """
    for said in _told(TOKENIZER, first_difference("", one, other), first, second):
        more = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)][1:]
        named = listing([name[:LONGEST] for name in more], 3, where="")
        yield f"{said}; {named} {'differs' if len(more) == 1 else 'differ'}, too" if more else said


def _only_template(first: str, one: ModelFolder, second: str, other: ModelFolder) -> Iterator[str]:
    """Yield a note if only one of two models with tokenisers has a chat template."""
    with suppress(CheckpointError):
        having = [name for name, folder in ((first, one), (second, other)) if folder.chat_template]
        if len(having) == 1 and one.tokenizer and other.tokenizer:
            yield f"only {escape(having[0])} has a chat template"


def _fields(folder: ModelFolder) -> Mapping[str, Any]:
    """Return the fields of a local tokenizer_config.json that no other note compares; {} if it cannot be read.

    Fields that are null are left out, as if they were missing.
    """
    with suppress(CheckpointError):
        fields = folder.document(TOKENIZER).items()
        return {name: value for name, value in fields if name not in IGNORED and value is not None}
    return {}


def _by_token(value: Any) -> Any:
    """Return the list ``added_tokens`` as a dict from each token to its entry; any other value unchanged."""
    rows = value if isinstance(value, list) else []
    if rows and all(isinstance(row, dict) and isinstance(row.get("content"), str) for row in rows):
        return {row["content"]: row for row in rows}
    return value


def _shared(one: Any, other: Any) -> Any:
    """Return the added tokens that are in ``one`` and ``other``, as in ``one``, but without their ids.

    A value that is not a dict of added tokens is returned unchanged.
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return one
    rows = {token: row for token, row in one.items() if token in other}
    return {token: {field: value for field, value in row.items() if field != "id"} for token, row in rows.items()}


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return escape(brief_repr(value, LONGEST))


def _names(folder: ModelFolder) -> set[str]:
    return {file.name for file in folder.tokenizer if file.path and not scheme_of(file.path)}


def _has_more(name: str, one: ModelFolder, other: ModelFolder) -> bool:
    """Return whether both folders have the same tokens, but the file ``name`` has more than tokens.

    This is true of sentencepiece models, which must therefore be compared although the tokens are the same.
    """
    return name.endswith(".model") and one.has_tokens_of(other)


def _differ(name: str, *folders: ModelFolder) -> bool:
    """Return whether a file differs between two folders; False if it cannot be read."""
    with suppress(CheckpointError):
        data = [read_small(next(file.path for file in one.tokenizer if file.name == name), LARGEST) for one in folders]
        return data[0] != data[1]
    return False
