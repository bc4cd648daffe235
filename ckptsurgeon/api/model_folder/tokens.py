"""Notes on added and special tokens of a model's folder that contradict the vocabulary or the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...destinations.hf.files import CONFIG
from ...errors import ConfigError, SourceError
from ...storage.read.uri import scheme_of
from ...util.text import brief_repr, count, escape, listing
from ...vocabulary.read import vocabulary_of
from ...vocabulary.token_ids import LostId, stale_ids
from .documents import BYTE_PAIRS, GENERATION, TOKENIZER, VOCABULARIES
from .folder import LARGEST, ModelFolder
from .merge_rules import merge_rule_notes

__all__ = [
    "ADDED",
    "WHOLE",
    "added_beyond",
    "added_in",
    "is_ctc",
    "listed_beyond",
    "needless",
    "special_id_notes",
    "token_list_notes",
    "unlisted_names",
]

# Tokens that a tokeniser adds with ids for which the embedding has no row.

ADDED = "added_tokens.json"
WHOLE = "tokenizer.json"
OLDER, LINES = VOCABULARIES[1:3]
LONGEST = 10
"""Row numbers have fewer digits than this."""


def added_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on the first file of a tokeniser that adds tokens with ids of ``rows`` or more.

    ``has`` is text that names the tensor with these rows. Tokens of a readable vocabulary are checked elsewhere.
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
    """Return the tokens that need no row: those for begin and end of a sentence, which a CTC model never emits."""
    names = _names(folder) if is_ctc(folder) else {}
    return {token for name, token in names.items() if name in ("bos_token", "eos_token")} - {names.get("pad_token")}


def listed_beyond(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on a vocab.json that skips ids, so that some tokens have an id without a row (``rows`` or more)."""
    if folder.vocabulary != OLDER or folder.tokens is not None:
        return
    listed = _object(folder, OLDER)
    found = {token: number for token, number in listed.items() if type(number) is int and number >= rows}
    if found and len(listed) <= rows and len(found) < len(listed):
        examples = listing([f"{_brief(token)} is {number}" for token, number in found.items()], 3)
        yield f"{OLDER} skips ids, which leaves {count(len(found), 'token')} without a row, since {has}: {examples}"


def added_in(folder: ModelFolder, name: str) -> Iterator[tuple[str, int]]:
    """Yield the tokens that a file adds, and their ids; none if it cannot be read, which is reported elsewhere."""
    try:
        document = json.loads(folder.read(name, LARGEST))
    except (ConfigError, SourceError, ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    if name == ADDED:
        yield from ((token, number) for token, number in document.items() if type(number) is int)
    elif name == WHOLE:
        rows = document.get("added_tokens")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get("content"), str):
                yield row["content"], row["id"]
    else:
        decoder = document.get("added_tokens_decoder")
        for number, row in decoder.items() if isinstance(decoder, dict) else ():
            token = row.get("content") if isinstance(row, dict) else None
            if isinstance(token, str) and number.isdecimal() and len(number) < LONGEST:
                yield token, int(number)


# Notes on two files of one tokeniser that give tokens different ids.


def token_list_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if two files of a tokeniser do not fit together: vocab.json and merges.txt, or two token lists.

    Files that would have to be fetched, or that cannot be read, are not compared.
    """
    for older in (OLDER, LINES):
        yield from _other_tokens(folder, older)
    yield from merge_rule_notes(folder)


def _other_tokens(folder: ModelFolder, older: str) -> Iterator[str]:
    named = {one.name: one.path for one in folder.files}
    if not {WHOLE, older} <= named.keys() or scheme_of(named[older]) or folder.tokens is None:
        return
    theirs: tuple[str, ...] = ()
    with suppress(ConfigError, SourceError):
        theirs = vocabulary_of(older, folder.read(older, LARGEST)).tokens
    pairs = list(zip(theirs, folder.tokens, strict=False))
    other = [row for row, (one, two) in enumerate(pairs) if one != two]
    if len(other) * 2 > len(pairs):
        row = other[0]
        one, two = (escape(brief_repr(token)) for token in pairs[row])
        differ = f"have other tokens in {len(other)} of {len(pairs)} rows"
        yield f"{older} and {WHOLE} {differ}: row {row} is {one} in {older} and {two} in {WHOLE}"


# Notes on special tokens: ids in a configuration that are those of words, and special tokens without a row.

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Fields with special tokens, in the order in which transformers adds tokens that a vocabulary lacks."""
STARTS = ("decoder_start_token", "forced_bos_token", "forced_eos_token", "no_timestamps_token", "prev_sot_token")
"""Special tokens that configurations have ids of, but tokenisers do not name."""
ROLES = (("bos_token", "eos_token"), ("eos_token", "pad_token"))
FORCED, LANGUAGES = "forced_decoder_ids", "lang_to_id"
SPECIAL = re.compile(r"▁?(<.*>|\[.*\]|\|.*\||__\w+__|[a-z]{2,3}_[A-Z]\w+|)", re.DOTALL)
"""Tokens that look like special or language tokens, not like words."""
UNUSED = ("ForCTC",)
"""Endings of the names of classes that use no special token but the blank, which is their pad_token."""
OLD = "clip"
"""Part of the names of model types whose ids differ from the tokeniser's, as transformers knows (CLIPTextModel)."""


def special_id_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on ids of special tokens in configurations that are the ids of ordinary words in the tokeniser.

    An id of another special token gets no note: many valid models have that. ``read`` is the folder whose vocabulary
    has been read.
    """
    size, tokens = folder.rows, _tokens(read) if folder.config else ()
    if not tokens or size < len(tokens) or OLD in str(folder.config.get("model_type")):
        return
    named_so = [
        f"{escape(one.field)} of {file} is {one.number} ({_brief(one.token)})"
        for file in (CONFIG, GENERATION)
        for one in (*stale_ids(_object(folder, file), tokens), *_unlisted_languages(folder, read, file, tokens))
    ]
    if named_so:
        yield f"ids whose tokens are not the ones that their fields name: {listing(named_so, 4, where='')}"
    names, places = _names(folder), {token: row for row, token in enumerate(tokens)}
    yield from _blank(folder, names, tokens, places)
    yield from _of_other_roles(folder, names, places)
    yield from _forced_words(folder, tokens)
    found = [one for one in _ids(folder) if _is_of_words(one, names, tokens)]
    if not found:
        return
    special = {*names.values(), *_added(folder)}
    words = []
    for field, file, ids in found:
        named = names.get(field, "")
        if (named in places or field in STARTS) and special.isdisjoint(tokens[one] for one in ids):
            own = listing([f"{one} ({_brief(tokens[one])})" for one in ids], 2, where="")
            meant = f", while {field} is {_brief(named)} ({places[named]})" if named else ""
            words.append(f"{field}_id of {file} is {own}{meant}")
    if words:
        yield f"ids of special tokens that are other words in the tokeniser: {listing(words, 4, where='')}"


def is_ctc(folder: ModelFolder) -> bool:
    """Whether a model is for CTC: its output layer has a row for each token, and its pad_token is the blank."""
    architectures = folder.config.get("architectures")
    return str(architectures[0] if isinstance(architectures, list) and architectures else "").endswith(UNUSED)


def _blank(
    folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...], places: dict[str, int]
) -> Iterator[str]:
    """Yield a note if the blank of a CTC model is not the pad_token of the tokeniser but another special token."""
    number, blank = folder.config.get("pad_token_id"), names.get("pad_token", "")
    if not is_ctc(folder) or type(number) is not int or not 0 <= number < len(tokens) or blank not in places:
        return
    if number != places[blank] and SPECIAL.fullmatch(tokens[number]):
        own = f"pad_token_id of {CONFIG}, the blank of CTC, is {number} ({_brief(tokens[number])})"
        yield f"{own}, and pad_token of {TOKENIZER} is {_brief(blank)} ({places[blank]})"


def _unlisted_languages(folder: ModelFolder, read: ModelFolder, file: str, tokens: tuple[str, ...]) -> Iterator[LostId]:
    """Yield the ids in ``lang_to_id`` whose language token is not in the tokeniser, if all its tokens are known."""
    languages, known = _object(folder, file).get(LANGUAGES), frozenset(tokens)
    for name, number in languages.items() if isinstance(languages, dict) and read.has_all_tokens else ():
        if name not in known and type(number) is int and 0 <= number < len(tokens) and tokens[number]:
            yield LostId(f"{LANGUAGES}.{name}", number, tokens[number])


def _of_other_roles(folder: ModelFolder, names: dict[str, str], places: dict[str, int]) -> Iterator[str]:
    """Yield a note if the ids of two special tokens are swapped, or if eos_token_id is the id of the unknown token."""
    if is_ctc(folder):
        return
    for file in (CONFIG, GENERATION):
        fields, own = _object(folder, file), {name: places.get(token, -1) for name, token in names.items()}
        for pair in ROLES:
            ids = [fields.get(f"{name}_id") for name in pair]
            wanted = [own.get(name, -1) for name in pair]
            if ids == wanted[::-1] and min(wanted) >= 0 and wanted[0] != wanted[1]:
                swapped = " and ".join(f"{name}_id is {number}" for name, number in zip(pair, ids, strict=True))
                named = " and ".join(f"{name} {_brief(names[name])} ({own[name]})" for name in pair)
                yield f"{swapped} in {file}, but the tokeniser beside it has {named}: the two are swapped"
        end, unknown = own.get("eos_token", -1), own.get("unk_token", -1)
        if fields.get("eos_token_id") == unknown and min(end, unknown) >= 0 and end != unknown:
            named = f"{_brief(names['unk_token'])}, the unk_token of the tokeniser beside it"
            meant = f"{_brief(names['eos_token'])} ({end})"
            yield f"eos_token_id of {file} is {unknown} ({named}), while eos_token is {meant}"


def _forced_words(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if the tokens that a decoder is forced to begin with are ordinary words."""
    for file in (CONFIG, GENERATION):
        pairs = _object(folder, file).get(FORCED)
        rows = [one for one in pairs if isinstance(one, list) and len(one) == 2] if isinstance(pairs, list) else []
        ids = [one[1] for one in rows if type(one[1]) is int and 0 <= one[1] < len(tokens)]
        if (
            ids
            and not any(SPECIAL.fullmatch(tokens[one]) for one in ids)
            and _added(folder).isdisjoint(tokens[one] for one in ids)
        ):
            examples = listing([f"{one} ({_brief(tokens[one])})" for one in ids], 3, where="")
            yield f"{FORCED} of {file} are ids of words in the tokeniser beside it: {examples}"


def unlisted_names(folder: ModelFolder, rows: int, has: str) -> Iterator[str]:
    """Yield a note on special tokens that a vocabulary lacks, so that they get ids of ``rows`` or more.

    ``has`` is text that names the tensor with these rows. A tokeniser with code of its own gets no note: it may have
    such tokens.
    """
    tokens = _tokens(folder)
    if not tokens or folder.vocabulary in BYTE_PAIRS or _object(folder, TOKENIZER).get("auto_map"):
        return
    names = {name: token for name, token in _names(folder).items() if token not in tokens}
    added = _added(folder) if names else set()
    missing = [token for token in dict.fromkeys(names.values()) if token not in added]
    beyond = [
        f"{next(name for name in names if names[name] == token)} {_brief(token)} is {number}"
        for number, token in enumerate(missing, len(tokens))
        if number >= rows and token not in needless(folder)
    ]
    if beyond:
        named = f"{count(len(beyond), 'token')} that {escape(folder.vocabulary)} lacks"
        yield f"{TOKENIZER} names {named}, but {has}: {listing(beyond, 3, where='')} without a row"


def _tokens(folder: ModelFolder) -> tuple[str, ...]:
    """Return the tokens of a folder; none if they would have to be fetched."""
    if not folder.vocabulary or any(scheme_of(one.path) for one in folder.tokenizer):
        return ()
    return folder.tokens or ()


def _ids(folder: ModelFolder) -> Iterator[tuple[str, str, list[int]]]:
    """Yield each special token in the configurations: its name, the file, and its ids."""
    names = ("pad_token",) if is_ctc(folder) else (*NAMES, *STARTS)
    for file in (CONFIG, GENERATION):
        fields = _object(folder, file)
        for name in names:
            value = fields.get(f"{name}_id")
            ids: list[Any] = value if isinstance(value, list) else [value]
            if ids and all(type(one) is int for one in ids):
                yield name, file, ids


def _is_of_words(one: tuple[str, str, list[int]], names: dict[str, str], tokens: tuple[str, ...]) -> bool:
    """Whether all ids are those of tokens that look like words, and none is that of the tokeniser's special token."""
    field, _, ids = one
    own = [tokens[number] if 0 <= number < len(tokens) else "" for number in ids]
    return names.get(field) not in own and bool(names) and not any(map(SPECIAL.fullmatch, own))


def _names(folder: ModelFolder) -> dict[str, str]:
    """Return the special tokens that a tokeniser names, by field."""
    fields = {**_object(folder, "special_tokens_map.json"), **_object(folder, TOKENIZER)}
    values = {name: fields.get(name) for name in NAMES}
    found = {name: one.get("content") if isinstance(one, dict) else one for name, one in values.items()}
    return {name: token for name, token in found.items() if isinstance(token, str) and token}


def _added(folder: ModelFolder) -> set[str]:
    """Return the tokens that files of a tokeniser add."""
    there = {one.name for one in folder.files}
    return {token for name in (ADDED, TOKENIZER, WHOLE) if name in there for token, _ in added_in(folder, name)}


def _object(folder: ModelFolder, name: str) -> dict[str, Any]:
    """Return a small JSON object of a folder; empty if it is missing or cannot be read, which is reported elsewhere."""
    if all(one.name != name for one in folder.files):
        return {}
    with suppress(ConfigError, SourceError, ValueError, RecursionError):
        return folder.document(name)
    return {}


def _brief(token: str) -> str:
    return escape(brief_repr(token, 24))
