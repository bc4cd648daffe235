"""Notes on fields such as ``eos_token_id`` in configurations whose id belongs to an ordinary word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import notes_of
from ....util.text import escape, listing
from ....vocabulary.renumbered_ids import stale_ids
from ....vocabulary.renumbering import LostId
from ....vocabulary.spoken import BLANKS, first_of
from ..config import AFTER_PADDING, PADDING
from ..documents import GENERATION, TOKENIZER
from ..folder import ModelFolder
from .roles import role_notes
from .tokenizer_files import NAMES, SPECIAL, added_tokens, brief_token, is_ctc, local_tokens, named_tokens, object_in
from .used_ids import begins_with, forced_word_notes, used_id_notes

__all__ = ["WORD", "ids_of_roles", "special_id_notes"]

STARTS = ("decoder_start_token", "forced_bos_token", "forced_eos_token", "no_timestamps_token", "prev_sot_token")
"""Roles of special tokens whose ids are in configurations, but which tokeniser files do not name."""
TEXT = "text_config"
NESTED = ("decoder", "generator", TEXT)
"""Nested configurations from which generation takes fields that the outer configuration lacks."""
LANGUAGES = "lang_to_id"
SEPARATED = ("big_bird", "longformer")
"""Model types whose ``sep_token_id`` has a default that may not fit the tokeniser."""
WORD = re.compile(r"[A-Za-z0-9]")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Matches tokens for single bytes. A character that has no token is encoded with them."""
BOUNDS = ("_start_token_id", "_end_token_id")
"""Suffixes of the names of fields with the ids of tokens before and after images, videos and audio."""
UNMARKED = ("blank", "blk", "eps", "epsilon", "pad", "ε")
"""Names of the CTC blank that look like ordinary words."""
OLD = "clip"
"""A part of the names of model types whose published ids are wrong, which transformers corrects (CLIPTextModel)."""


@notes_of(NoteKind.TOKEN_IDS)
def special_id_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on fields such as ``eos_token_id`` in configurations whose id belongs to an ordinary word.

    Further notes are on ids of tokens with another role. ``read`` is the folder from which the vocabulary is read:
    ``folder`` itself, or a folder with the same tokeniser whose vocabulary is already in memory.
    """
    size, tokens = folder.rows, local_tokens(read) if folder.config else ()
    if not tokens or size < len(tokens):
        return
    names, places = named_tokens(folder), {token: row for row, token in enumerate(tokens)}
    yield from used_id_notes(folder, names, places)
    if OLD in str(folder.config.get("model_type")):
        return
    named_so = [
        f"{escape(one.field)} of {file} is {one.number} ({brief_token(one.token)})"
        for file in (CONFIG, GENERATION)
        for one in (*stale_ids(object_in(folder, file), tokens), *_unlisted_languages(folder, read, file, tokens))
    ]
    named_so += _other_bounds(folder, tokens, places)
    if named_so:
        yield f"ids in fields that are meant for other tokens: {listing(named_so, 4, where='')}"
    yield from _blank(folder, names, tokens, places)
    yield from _letter_as_blank(folder, names, tokens, places)
    yield from _padding(folder, names, tokens, places)
    yield from _forbidden(folder, tokens)
    yield from role_notes(folder, names, places)
    yield from forced_word_notes(folder, tokens)
    yield from _words_among_ends(folder, names, tokens)
    yield from _lost_end(folder, names, tokens)
    found = [one for one in ids_of_roles(folder) if _is_of_words(one, names, tokens)]
    if not found:
        return
    special = {*names.values(), *added_tokens(folder)}
    words = []
    for field, file, ids in found:
        named = names.get(field, "")
        is_checked = named in places or field in _without_names(folder, names)
        if field == "bos_token" and not named:
            is_checked = begins_with(folder, ids) and all(_is_word(tokens[one]) for one in ids)
        if is_checked and special.isdisjoint(tokens[one] for one in ids):
            own = listing([f"{one} ({brief_token(tokens[one])})" for one in ids], 2, where="")
            meant = f", while {field} is {brief_token(named)} ({places[named]})" if named else ""
            words.append(f"{field}_id of {file} is {own}{meant}")
    if words:
        yield f"ids of special tokens that are ordinary words in the tokeniser: {listing(words, 4, where='')}"


@notes_of(NoteKind.CONFIGURATION)
def _other_bounds(folder: ModelFolder, tokens: tuple[str, ...], places: dict[str, int]) -> Iterator[str]:
    """Yield a text on each field like ``vision_start_token_id`` in config.json whose id belongs to another token.

    These fields have the ids of the tokens before and after images, videos or audio, such as ``<|vision_start|>``.
    ``tokens`` has all tokens in the order of their ids, and ``places`` maps each token to its id.
    """
    for field, number in folder.config.items():
        name = f"<|{field.removesuffix('_token_id')}|>"
        if field.endswith(BOUNDS) and _is_row(number, tokens) and places.get(name, number) != number:
            own = f"{escape(field)} of {CONFIG} is {number} ({brief_token(tokens[number])})"
            yield f"{own}, while {brief_token(name)} is {places[name]}"


@notes_of(NoteKind.TOKEN_IDS)
def _blank(
    folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...], places: dict[str, int]
) -> Iterator[str]:
    """Yield a note if the blank of a CTC model is not the pad_token of the tokeniser but another special token.

    If the blank is an ordinary word, ``special_id_notes`` yields the note instead, unless the word is an added token,
    as the word delimiter '|' is. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``). ``tokens`` has all
    tokens in the order of their ids, and ``places`` maps each token to its id.
    """
    number, blank = folder.config.get("pad_token_id"), names.get("pad_token", "")
    if not is_ctc(folder) or type(number) is not int or not 0 <= number < len(tokens) or blank not in places:
        return
    token = tokens[number]
    if number != places[blank] and (SPECIAL.fullmatch(token) or token in {*names.values(), *added_tokens(folder)}):
        own = f"pad_token_id of {CONFIG}, the blank of CTC, is {number} ({brief_token(token)})"
        yield f"{own}, and pad_token of {TOKENIZER} is {brief_token(blank)} ({places[blank]})"


@notes_of(NoteKind.TOKEN_IDS)
def _letter_as_blank(
    folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...], places: dict[str, int]
) -> Iterator[str]:
    """Yield a note if the blank of a CTC model is a letter or a word, and its tokeniser names no other blank.

    The word delimiter '|' is reported only if the list has a blank. ``names`` maps roles to special tokens
    (``{"eos_token": "</s>"}``). ``tokens`` has all tokens in the order of their ids, and ``places`` maps each token to
    its id.
    """
    number = folder.config.get(PADDING)
    if not is_ctc(folder) or type(number) is not int or not 0 <= number < len(tokens):
        return
    token, blank = tokens[number], first_of(BLANKS, places)
    is_word = token.strip("▁").isalpha() and token.lower() not in UNMARKED
    if names.get("pad_token") in places or not (is_word or (token == "|" and blank is not None)):
        return
    own = f"{PADDING} of {CONFIG}, the blank of CTC, is {number} ({brief_token(token)})"
    has = f"has {brief_token(blank)} ({places[blank]})" if blank is not None else "has no token for the blank"
    yield f"{own}, and {escape(folder.vocabulary)} {has}: the model never writes {brief_token(token)}"


@notes_of(NoteKind.TOKEN_IDS)
def _padding(
    folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...], places: dict[str, int]
) -> Iterator[str]:
    """Yield a note if ``pad_token_id`` is not the id of the tokeniser's padding token, and the model computes with it.

    A classifier on a decoder-only model classifies by the last token that is not ``pad_token_id``, and models such as
    RoBERTa count positions from this id on. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``).
    ``tokens`` has all tokens in the order of their ids, and ``places`` maps each token to its id.
    """
    number, padding = folder.config.get(PADDING), names.get("pad_token", "")
    classes = folder.config.get("architectures")
    is_classifier = isinstance(classes, list) and any(str(one).endswith("ForSequenceClassification") for one in classes)
    counts = folder.config.get("model_type") in AFTER_PADDING
    if not (is_classifier or counts) or padding not in places or type(number) is not int:
        return
    if 0 <= number < len(tokens) and tokens[number] != padding:
        own = f"{PADDING} of {CONFIG} is {number} ({brief_token(tokens[number])})"
        meant = f"pad_token of {TOKENIZER} is {brief_token(padding)} ({places[padding]})"
        classified = "a padded text may be classified by its padding"
        yield f"{own}, and {meant}: {'each token gets a wrong position' if counts else classified}"


@notes_of(NoteKind.VOCABULARY)
def _forbidden(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if ``bad_words_ids`` of Marian forbids a word instead of the padding token.

    Marian's decoder begins with the padding token, but must not generate it.
    """
    for file in (CONFIG, GENERATION) if folder.config.get("model_type") == "marian" else ():
        fields = object_in(folder, file)
        listed, padding = fields.get("bad_words_ids"), fields.get("pad_token_id", folder.config.get("pad_token_id"))
        alone = (
            [one[0] for one in listed if isinstance(one, list) and len(one) == 1] if isinstance(listed, list) else []
        )
        words = [one for one in alone if type(one) is int and 0 <= one < len(tokens) and _is_word(tokens[one])]
        if words and padding not in alone:
            named = f"{words[0]} ({brief_token(tokens[words[0]])})"
            must = f"for Marian it must forbid the padding token{f', {padding}' if padding is not None else ''}"
            yield f"bad_words_ids of {file} forbids the word {named}, but {must}"


def _unlisted_languages(folder: ModelFolder, read: ModelFolder, file: str, tokens: tuple[str, ...]) -> Iterator[LostId]:
    """Yield the entries of ``lang_to_id`` in ``file`` whose language token the tokeniser lacks.

    Nothing is yielded if the vocabulary file may lack added tokens.
    """
    languages, known = object_in(folder, file).get(LANGUAGES), frozenset(tokens)
    for name, number in languages.items() if isinstance(languages, dict) and read.has_all_tokens else ():
        if name not in known and type(number) is int and 0 <= number < len(tokens) and tokens[number]:
            yield LostId(f"{LANGUAGES}.{name}", number, tokens[number])


@notes_of(NoteKind.CONFIGURATION)
def _words_among_ends(folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if ``eos_token_id`` lists an ordinary word in addition to the right token.

    Generation would stop at this word. Line ends and other signs get no note: models that write one line stop there
    (BLIP-2). ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``tokens`` has all tokens in the
    order of their ids.
    """
    for file in (CONFIG, GENERATION):
        ids = object_in(folder, file).get("eos_token_id")
        rows = [one for one in ids if type(one) is int and 0 <= one < len(tokens)] if isinstance(ids, list) else []
        if names.get("eos_token") in [tokens[one] for one in rows]:
            words = {one: tokens[one] for one in rows if _is_word(tokens[one])}
            special = {*names.values(), *added_tokens(folder)} if words else set()
            found = [f"{one} ({brief_token(word)})" for one, word in words.items() if word not in special]
            if found:
                listed = f"{listing(found, 3, where='')} besides {brief_token(names['eos_token'])}"
                yield f"eos_token_id of {file} lists {listed}: generation stops at ordinary words of the tokeniser"


@notes_of(NoteKind.CONFIGURATION)
def _lost_end(folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if generation stops at an ordinary token instead of a special token in config.json's eos_token_id.

    This happens with the generation_config.json of another model version, such as Gemma 2's with Gemma 3. ``names``
    maps roles to special tokens (``{"eos_token": "</s>"}``), and ``tokens`` has all tokens in the order of their ids.
    """
    lists = [object_in(folder, file).get("eos_token_id") for file in (CONFIG, GENERATION)]
    ours, theirs = ([one for one in ids if _is_row(one, tokens)] if isinstance(ids, list) else [] for ids in lists)
    special = {*names.values()}  # added tokens may be ordinary tokens: Gemma adds line ends
    lost = [one for one in ours if one not in theirs and (SPECIAL.fullmatch(tokens[one]) or tokens[one] in special)]
    other = [one for one in theirs if one not in ours and not SPECIAL.fullmatch(tokens[one])]
    other = [one for one in other if tokens[one] not in special]
    if lost and other:
        named = ([f"{one} ({brief_token(tokens[one])})" for one in ids] for ids in (lost, other))
        says, has = (listing(ids, 3, where="") for ids in named)
        differ = f"eos_token_id has {says} in {CONFIG}, but {has} in {GENERATION}"
        yield f"{differ}: generation does not end at {listing([str(one) for one in lost], 3, where='')}"


def _is_word(token: str) -> bool:
    """Return whether a token is not special: a word, a part of a word, or a single byte (``<0x41>``)."""
    return BYTE.fullmatch(token) is not None or bool(WORD.search(token) and not SPECIAL.fullmatch(token))


def _is_row(number: Any, tokens: tuple[str, ...]) -> bool:
    return type(number) is int and 0 <= number < len(tokens)


def _without_names(folder: ModelFolder, names: dict[str, str]) -> tuple[str, ...]:
    """Return the roles whose id must not be an ordinary word, even if the tokeniser has no token for the role.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``).
    """
    is_default = folder.config.get("model_type") in SEPARATED
    return STARTS if is_default or "sep_token" in names else (*STARTS, "sep_token")


def ids_of_roles(folder: ModelFolder) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (role, file, ids) for each special token whose ids are in config.json or generation_config.json."""
    names = ("pad_token",) if is_ctc(folder) else (*NAMES, *STARTS)
    for file in (CONFIG, GENERATION):
        fields = object_in(folder, file)
        for name in names:
            value = fields.get(f"{name}_id")
            ids: list[Any] = value if isinstance(value, list) else [value]
            if ids and all(type(one) is int for one in ids):
                yield name, file, ids
    yield from _ends_of_part(folder)


def _ends_of_part(folder: ModelFolder) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (role, "SECTION in FILE", ids) for a nested configuration's ``eos_token_id``, if the outer one has none.

    Generation uses this id if no other configuration has one (``GenerationConfig.from_model_config`` of transformers).
    The id in ``text_config`` is yielded even if there is a generation_config.json: other programs (vLLM, converters to
    GGUF) read it, and it may be left from another model.
    """
    if folder.config.get("eos_token_id") is not None:
        return
    part = next((one for one in NESTED if folder.config.get(one)), "")
    if part != TEXT and any(one.name == GENERATION for one in folder.files):
        return
    fields = folder.config.get(part)
    value = fields.get("eos_token_id") if isinstance(fields, dict) else None
    ids: list[Any] = value if isinstance(value, list) else [value]
    if ids and all(type(one) is int for one in ids):
        yield "eos_token", f"{part} in {CONFIG}", ids


def _is_of_words(one: tuple[str, str, list[int]], names: dict[str, str], tokens: tuple[str, ...]) -> bool:
    """Return whether no id in ``one`` = (role, file, ids) belongs to a special token or to the role's own token.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``tokens`` has all tokens in the order of
    their ids.
    """
    field, _, ids = one
    own = [tokens[number] if 0 <= number < len(tokens) else "" for number in ids]
    special = [token for token in own if SPECIAL.fullmatch(token) and not BYTE.fullmatch(token)]
    return names.get(field) not in own and bool(names) and not special
