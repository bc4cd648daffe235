"""Notes on special and added tokens in a tokeniser's files that the vocabulary lacks, or that have no row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ....errors import ConfigError, SourceError
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import count, escape, listing
from ....vocabulary.row_order import IN_CODE, kind_of
from ..documents import BYTE_PAIRS, TOKENIZER, VOCABULARIES
from ..folder import LARGEST, ModelFolder
from .tokenizer_files import (
    ADDED,
    MAP,
    MORE,
    NAMES,
    WHOLE,
    added_in,
    added_tokens,
    brief_token,
    is_ctc,
    local_tokens,
    named_tokens,
    object_in,
    roles_in,
    text_of,
)

__all__ = [
    "NewId",
    "added_beyond",
    "added_notes",
    "listed_beyond",
    "name_notes",
    "needless",
    "new_ids",
    "unlisted_names",
]

# Notes on tokens that a tokeniser's files add, but that have no row in the weights.

OLDER = VOCABULARIES[1]


@notes_of(NoteKind.VOCABULARY)
def added_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on the first file of a tokeniser that adds tokens with ids of ``rows`` or more.

    ``has`` is a clause on the tensor with these rows: "KEY has 8 rows". If the vocabulary can be read, other checks
    report its tokens.
    """
    named = {one.name for one in folder.files}
    for name in (ADDED, TOKENIZER, *((WHOLE,) if folder.vocabulary and folder.tokens is None else ())):
        listed = added_in(folder, name) if name in named else ()
        found = {token: number for token, number in listed if number >= rows and token not in needless(folder)}
        if found:
            examples = listing([f"{token} is {number}" for token, number in found.items()], 3)
            yield f"{escape(name)} adds {count(len(found), 'token')} without a row, since {has}: {examples}"
            return


def needless(folder: ModelFolder) -> set[str]:
    """Return the tokens that need no row: bos_token and eos_token of a CTC model, unless one of them is its blank."""
    names = named_tokens(folder) if is_ctc(folder) else {}
    return {token for name, token in names.items() if name in ("bos_token", "eos_token")} - {names.get("pad_token")}


@notes_of(NoteKind.TOKENS_WITHOUT_ROWS)
def listed_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note if a vocabulary skips ids, so that its largest ids are ``rows`` or more, and have no row.

    ``has`` is a clause on the tensor with these rows: "KEY has 8 rows".
    """
    if folder.vocabulary not in (WHOLE, OLDER) or folder.tokens is not None:
        return
    listed = object_in(folder, OLDER) if folder.vocabulary == OLDER else listed_in_whole(folder)
    found = {token: number for token, number in listed.items() if type(number) is int and number >= rows}
    if found and len(listed) <= rows and len(found) < len(listed):
        examples = listing([f"{brief_token(token)} is {number}" for token, number in found.items()], 3)
        skips = f"{folder.vocabulary} skips ids"
        yield f"{skips}, which leaves {count(len(found), 'token')} without a row, since {has}: {examples}"


def listed_in_whole(folder: ModelFolder) -> Mapping[str, Any]:
    """Return {token: id} of the vocabulary in a tokenizer.json, without added tokens; empty if it is not such a map."""
    with suppress(ConfigError, SourceError, ValueError, RecursionError):
        document = json.loads(folder.read(WHOLE, LARGEST))
        model = document.get("model") if isinstance(document, dict) else None
        listed = model.get("vocab") if isinstance(model, dict) else None
        return listed if isinstance(listed, dict) else {}
    return {}


EXTRA = ("extra_special_tokens", "additional_special_tokens")
"""The fields with other special tokens: first that of transformers 5 (a list or an object), then the older one."""


@notes_of(NoteKind.VOCABULARY)
def unlisted_names(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on special tokens that a vocabulary lacks, so that they get ids of ``rows`` or more.

    ``has`` is a clause on the tensor with these rows: "KEY has 8 rows". A tokeniser with custom code gets no note,
    because this code may define the tokens.
    """
    found = new_ids(folder, local_tokens(folder))
    for file in (TOKENIZER, MAP):
        beyond = [
            f"{one.field} {brief_token(token)} is {one.number}"
            for token, one in found.items()
            if one.file == file and one.number >= rows and token not in needless(folder)
        ]
        if beyond:
            lacks = f"{count(len(beyond), 'token')} that {escape(folder.vocabulary)} lacks"
            yield f"{file} lists {lacks}, but {has}: {listing(beyond, 3, where='')}, beyond the last row"


class NewId(NamedTuple):
    """The id that transformers gives to a token that the vocabulary lacks; the file and the field with the token."""

    number: int
    file: str
    field: str


def new_ids(folder: ModelFolder, listed: tuple[str, ...]) -> dict[str, NewId]:
    """Return the new ids of special tokens that are in a tokeniser's files, but not in its token list ``listed``.

    transformers gives them the ids after the last token. The result is empty for a tokeniser with custom code,
    because this code may define the tokens.
    """
    tokens = frozenset(listed)
    if not tokens or folder.vocabulary in BYTE_PAIRS or object_in(folder, TOKENIZER).get("auto_map"):
        return {}
    named = {token: said for token, said in _named(folder).items() if token not in tokens}
    added = _added(folder, len(tokens)) if named else frozenset[str]()
    missing = [token for token in named if token not in added]
    first = len(tokens | added)
    return {token: NewId(number, *named[token]) for number, token in enumerate(missing, first)}


def _named(folder: ModelFolder) -> dict[str, tuple[str, str]]:
    """Return {token: (file, field)} of the special tokens that transformers adds if they are missing, in this order."""
    said = object_in(folder, TOKENIZER)
    mapped = {} if MORE in said else object_in(folder, MAP)
    added = [(text_of(one), TOKENIZER, MORE) for _, one in _decoder(said)] if folder.has_all_tokens else []
    roles = {**roles_in(said), **roles_in(mapped)}
    named = [(roles[name], TOKENIZER if roles[name] == roles_in(said).get(name) else MAP, name) for name in roles]
    files = () if kind_of(said, folder.config) in IN_CODE else ((TOKENIZER, said), (MAP, mapped))
    more = [(token, file, field) for file, fields in files for field, token in _extra(fields)]
    found: dict[str, tuple[str, str]] = {}
    for token, file, field in (*added, *sorted(named, key=lambda one: NAMES.index(one[2])), *more):
        found.setdefault(token, (file, field))
    return {token: at for token, at in found.items() if token}


def _decoder(fields: Mapping[str, Any]) -> list[tuple[int, Any]]:
    decoder = fields.get(MORE)
    found = decoder.items() if isinstance(decoder, dict) else ()
    return sorted(((int(key), one) for key, one in found if key.isdecimal() and len(key) < 10), key=lambda one: one[0])


def _extra(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, token) for each special token in a file's ``fields`` that has no role such as ``eos_token``."""
    field = next((name for name in EXTRA if fields.get(name)), "")
    value = fields.get(field)
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield field, text_of(one)


def _added(folder: ModelFolder, size: int) -> frozenset[str]:
    """Return the tokens that a tokeniser's files add to its vocabulary of ``size`` tokens.

    If the vocabulary file is tokenizer.json, tokens in tokenizer_config.json with an id below ``size`` are left out.
    """
    there = {one.name for one in folder.files}
    least = size if folder.has_all_tokens else 0
    found = [(file, *one) for file in (ADDED, TOKENIZER, WHOLE) if file in there for one in added_in(folder, file)]
    return frozenset(token for file, token, number in found if file != TOKENIZER or number >= least)


@notes_of(NoteKind.VOCABULARY)
def name_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ``special_tokens_map.json`` has other special tokens than ``tokenizer_config.json``.

    If transformers does not read ``special_tokens_map.json``, there is a note only if two tokens are swapped, or if the
    tokeniser lacks a token of the file.
    """
    said = object_in(folder, TOKENIZER)
    there, here = roles_in(object_in(folder, MAP)), roles_in(said)
    other = [name for name in here if name in there and here[name] != there[name]]
    is_swapped = any(there[name] == here[one] and there[one] == here[name] for name in other for one in other)
    if other and (is_swapped or MORE not in said or _are_unknown(folder, [there[name] for name in other])):
        named = listing(
            [f"{name} {brief_token(there[name])} and {brief_token(here[name])}" for name in other], 3, where=""
        )
        wins = f"transformers{' before 4.34' if MORE in said else ''} uses {MAP}"
        yield f"{MAP} and {TOKENIZER} have different special tokens: {named}: {wins}"


def _are_unknown(folder: ModelFolder, tokens: Sequence[str]) -> bool:
    """Return whether the tokeniser lacks one of the tokens; false if its list may be incomplete."""
    listed = local_tokens(folder) if folder.has_all_tokens else ()
    return bool(listed) and not {*listed, *added_tokens(folder)}.issuperset(tokens)


@notes_of(NoteKind.TOKEN_IDS)
def added_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield a note on tokens of added_tokens.json that tokenizer.json lacks, if transformers gives them other ids.

    transformers gives them the ids after the last token, in the order of their ids in added_tokens.json. It drops a
    token whose id is the id of an added token in tokenizer.json (``_from_pretrained`` of transformers 5.23). There is
    no note if tokenizer_config.json has all added tokens. ``read`` is the folder from which the vocabulary is read:
    ``folder`` itself, or a folder with the same tokeniser whose vocabulary is already in memory.
    """
    said, tokens = object_in(folder, TOKENIZER), local_tokens(read) if read.has_all_tokens else ()
    if not tokens or MORE in said or said.get("auto_map") or all(one.name != ADDED for one in folder.files):
        return
    known, taken = frozenset(tokens), {row for _, row in added_in(read, WHOLE)}
    lacking = {row: token for token, row in added_in(folder, ADDED) if token not in known}
    places = {row: place for place, row in enumerate(sorted(lacking.keys() - taken), len(tokens))}
    other = {token: (row, places.get(row)) for row, token in lacking.items() if places.get(row) != row}
    if other:
        named = [
            f"{brief_token(token)} is {row} in the file and {'not added' if place is None else f'gets {place}'}"
            for token, (row, place) in sorted(other.items(), key=lambda one: one[1][0])
        ]
        which = f"{count(len(other), 'token')} that {WHOLE} lacks, and transformers changes the ids"
        yield f"{ADDED} adds {which}: {listing(named, 3, where='')}"
