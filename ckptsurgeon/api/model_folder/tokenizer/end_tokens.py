"""Notes on end tokens that cannot end a text (no token, suppressed, an ordinary word), and on suppressed words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....destinations.hf.files import CONFIG
from ....errors import ConfigError, SourceError
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, escape, listing
from ..documents import GENERATION, TOKENIZER
from ..folder import ModelFolder
from .roles import SPELLED
from .special_ids import WORD
from .tokenizer_files import (
    MORE,
    SPECIAL,
    WHOLE,
    added_tokens,
    brief_token,
    is_ctc,
    local_tokens,
    named_tokens,
    object_in,
    ordinary_tokens,
    text_of,
)

__all__ = ["end_notes"]

END = "eos_token_id"
IDS = (END, "decoder_start_token_id")
SUPPRESSED = "suppress_tokens"
AT_FIRST = "begin_suppress_tokens"
TURNS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eot|>", "<|end_of_turn|>")
"""Tokens with which chat templates end a turn (a message)."""
BEGINS = re.compile(r"start|begin", re.IGNORECASE)
LETTER = re.compile(r"[A-Za-z]")
FEWEST_WORDS = 3
"""There is a note only if Whisper's ``suppress_tokens`` has this many words: one or two may be there on purpose.

Whisper's own lists have punctuation, musical notes and special tokens. No token in them has a letter: neither the 82 of
the list for the multilingual vocabulary, nor the 84 of the list for the English one. In the other vocabulary, however,
53 of these 84 ids, and 58 of the 82, belong to words. Digits do not count: some programs suppress them, so that numbers
are written in words.
"""


def end_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[Note]:
    """Yield notes on end tokens (``eos_token``) that do not end generated texts.

    ``read`` is the folder from which the vocabulary is read: ``folder`` itself, or a folder with the same tokeniser
    whose vocabulary is already in memory. A CTC model, which has no end token, gets no notes.
    """
    if is_ctc(folder):
        return
    tokens = local_tokens(read) if folder.config else ()
    names, places = named_tokens(folder), {token: row for row, token in enumerate(tokens)}
    for file in (CONFIG, GENERATION):
        yield from _no_ids(object_in(folder, file), file)
    yield from _endless(folder)
    yield from _negative(folder, names, places)
    yield from _suppressed(object_in(folder, GENERATION))
    if places:
        yield from _of_turns(folder, names, places)
        yield from _kept_in_texts(folder, names, places)
    if tokens and folder.rows >= len(tokens):
        yield from _ordinary(folder, names, places, tokens)
        yield from _suppressed_at_first(folder, names, places, tokens)
        yield from _suppressed_words(folder, tokens)


@notes_of(NoteKind.CONFIGURATION)
def _endless(folder: ModelFolder) -> Iterator[str]:
    """Yield a note if generation_config.json has no ``eos_token_id``: generation does not use the id in config.json."""
    generation, text = object_in(folder, GENERATION), folder.config.get("text_config")
    fields = {**(text if isinstance(text, dict) else {}), **folder.config}
    is_whole = any(name in generation for name in ("bos_token_id", "transformers_version"))  # written by transformers
    if is_whole and generation.get(END) is None and _listed(fields.get(END)):
        end = escape(brief_repr(fields[END], 24))
        yield f"{GENERATION} has no {END}, and that of {CONFIG}, {end}, is not read: generation does not end by itself"


@notes_of(NoteKind.CONFIGURATION)
def _no_ids(fields: Mapping[str, Any], file: str) -> Iterator[str]:
    """Yield a note if the id of the end token or of the decoder's start token is not an integer.

    ``file`` is the name of the file with the ``fields``. In generation_config.json, only strings get a note, because
    there, 2.0 has the same effect as 2.
    """
    for field in IDS:
        ids = _listed(fields.get(field))
        wrong = [one for one in ids if (isinstance(one, str) if file == GENERATION else type(one) is not int)]
        if wrong:
            fails = "generation fails" if file == GENERATION else "most models of transformers 5 do not load with it"
            yield f"{field} of {file} is {escape(brief_repr(wrong[0], 24))}, not an integer: {fails}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


@notes_of(NoteKind.TOKEN_IDS)
def _negative(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if the id of the end token or of the decoder's start token is negative.

    For the end token, there is a note only if the tokeniser has an end token. ``names`` maps roles to special tokens
    (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    meant = names.get("eos_token", "")
    for field in IDS:
        found = {file: ids for file in (CONFIG, GENERATION) if (ids := _listed(object_in(folder, file).get(field)))}
        file = next(reversed(found), "")
        if file and all(type(one) is int and one < 0 for one in found[file]) and (field != END or meant in places):
            end = f", while eos_token is {brief_token(meant)} ({places[meant]})" if field == END else ""
            yield f"{field} of {file} is {found[file][0]}, which is the id of no token{end}"


@notes_of(NoteKind.TOKEN_IDS)
def _of_turns(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if the chat template ends turns with a token at which generation does not stop.

    There is a note if the template ends turns with the ``eos_token`` of the tokeniser. If it ends them with a token in
    ``TURNS``, there is a note only if ``eos_token_id`` has several ids: base models, which have not learned to end
    turns, are published with a single id. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and
    ``places`` maps each token to its id.
    """
    template, end = _template(folder), names.get("eos_token", "")
    text = folder.config.get("text_config")
    fields = {**(text if isinstance(text, dict) else {}), **folder.config}
    said = {GENERATION: _listed(object_in(folder, GENERATION).get(END)), CONFIG: _listed(fields.get(END))}
    file = next((name for name, ids in said.items() if ids), "")
    tokens = {row: token for token, row in places.items()}
    if not template or not file or not all(type(one) is int and one in tokens for one in said[file]):
        return
    is_eos = end in places and (end in template or "eos_token" in template)
    ends = [tokens[one] for one in said[file]]
    if any((_is_end(one) and one in template) or (is_eos and one == end) for one in ends):
        return
    turn = end if is_eos else next((one for one in TURNS if one in places and one in template), "")
    if turn and (is_eos or len(ends) > 1):
        found = listing([f"{places[one]} ({brief_token(one)})" for one in ends], 3, where="")
        written = f"{brief_token(turn)} ({places[turn]})"
        stops = f"but {END} of {file} is {found}: generation does not stop there"
        yield f"the chat template ends turns with {written}, {stops}"


@notes_of(NoteKind.CONFIGURATION)
def _kept_in_texts(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if a token that ends turns is added as an ordinary token, so that decoded answers contain it.

    There is no note if tokenizer_config.json gives the token a role, lists it as an additional special token or marks
    it as special. In these cases, it depends on the version of transformers whether decoded texts keep the token.
    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    more = object_in(folder, TOKENIZER)
    listed = [
        one for name in ("additional_special_tokens", "extra_special_tokens") for one in _tokens_of(more.get(name))
    ]
    marked = more.get(MORE)
    rows = marked.values() if isinstance(marked, dict) else ()
    listed += [text_of(row) for row in rows if isinstance(row, dict) and row.get("special") is True]
    special = {*names.values(), *listed}
    tokens = {row: token for token, row in places.items()}
    ends = {tokens.get(one) for one in _listed(object_in(folder, GENERATION).get(END)) if type(one) is int}
    plain = [one for one in ordinary_tokens(folder) if one not in special and one in ends and _is_end(one)]
    for one in plain:
        ordinary = f"which {WHOLE} adds with special: false"
        yield f"generation ends at {brief_token(one)} ({places[one]}), {ordinary}: decoded texts keep it"


def _tokens_of(listed: Any) -> list[str]:
    values = listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else ()
    return [text_of(one) for one in values]


def _is_end(token: str) -> bool:
    """Return whether a token may end a turn: it is a special token whose text contains neither "start" nor "begin"."""
    return bool(SPECIAL.fullmatch(token)) and not BEGINS.search(token)


def _template(folder: ModelFolder) -> str:
    """Return the chat template of a folder; "" if there is none or it cannot be read, which another note reports."""
    with suppress(ConfigError, SourceError):
        return folder.chat_template
    return ""


@notes_of(NoteKind.CONFIGURATION)
def _suppressed(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if ``suppress_tokens`` has all end tokens; in ``begin_suppress_tokens``, they are normal."""
    ends, suppressed = _listed(fields.get(END)), _listed(fields.get(SUPPRESSED))
    if ends and all(type(one) is int and one in suppressed for one in ends):
        yield f"{SUPPRESSED} of {GENERATION} has {ends[0]}, its {END}: generation cannot end"


@notes_of(NoteKind.TOKEN_IDS)
def _ordinary(
    folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int], tokens: tuple[str, ...]
) -> Iterator[str]:
    """Yield a note if a configuration's end token is special, but the tokeniser's end token is a word or its unk_token.

    There is no note if the two are different special tokens, as in chat models (``<|im_end|>``). ``names`` maps roles
    to special tokens (``{"eos_token": "</s>"}``). ``tokens`` has all tokens in the order of their ids, and ``places``
    maps each token to its id.
    """
    end = names.get("eos_token", "")
    said = {file: _listed(object_in(folder, file).get(END)) for file in (CONFIG, GENERATION)}
    ids = [(file, one) for file, found in said.items() for one in found if type(one) is int and 0 <= one < len(tokens)]
    if end not in places or not ids or any(one == places[end] for _, one in ids):
        return
    is_unknown = end == names.get("unk_token") and bool(re.fullmatch(SPELLED["unk_token"], end, re.IGNORECASE))
    is_word = bool(WORD.search(end)) and not SPECIAL.fullmatch(end) and end not in added_tokens(folder)
    file, own = ids[-1]
    if (is_unknown or is_word) and tokens[own] != end and SPECIAL.fullmatch(tokens[own]):
        which = "the unknown token" if is_unknown else "an ordinary word"
        named = f"{brief_token(end)} ({places[end]}), {which}"
        yield f"eos_token of the tokeniser is {named}, while {END} of {file} is {own} ({brief_token(tokens[own])})"


@notes_of(NoteKind.OTHER)
def _suppressed_at_first(
    folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int], tokens: tuple[str, ...]
) -> Iterator[str]:
    """Yield notes if Whisper's ``begin_suppress_tokens`` lacks the end token, or has the ids of words.

    If the end token is not suppressed, a generated text may be empty. If words are suppressed, no text can begin with
    them. A correct list has the space and the end token. An empty list, which suppresses nothing, gets no note.
    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``). ``tokens`` has all tokens in the order of their
    ids, and ``places`` maps each token to its id.
    """
    file, ids = _own_list(folder, AT_FIRST)
    end = names.get("eos_token", "")
    if folder.config.get("model_type") != "whisper" or not ids or end not in places:
        return
    words = [one for one in ids if type(one) is int and 0 <= one < len(tokens) and WORD.search(tokens[one])]
    words = [one for one in words if not SPECIAL.fullmatch(tokens[one]) and tokens[one] != end]
    if words:
        named = listing([f"{one} ({brief_token(tokens[one])})" for one in words], 3, where="")
        yield f"{AT_FIRST} of {file} has words of the tokeniser, so that no text can begin with them: {named}"
    if places[end] not in ids:
        lacks = f"lacks the end token, {brief_token(end)} ({places[end]})"
        yield Note(NoteKind.VOCABULARY, f"{AT_FIRST} of {file} {lacks}: generated texts may be empty")


def _own_list(folder: ModelFolder, field: str) -> tuple[str, list[Any]]:
    """Return (file, list of ids in the field ``field``) for the file that generation reads this field from.

    The file is generation_config.json if it has the field, else config.json.
    """
    file = GENERATION if field in object_in(folder, GENERATION) else CONFIG
    return file, _listed(object_in(folder, file).get(field))


@notes_of(NoteKind.TOKEN_IDS)
def _suppressed_words(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if Whisper's ``suppress_tokens`` lists ids of words: they may be ids of another vocabulary.

    ``tokens`` has all tokens in the order of their ids.
    """
    file, ids = _own_list(folder, SUPPRESSED)
    ids = ids if folder.config.get("model_type") == "whisper" else []
    words = [one for one in ids if type(one) is int and 0 <= one < len(tokens) and LETTER.search(tokens[one])]
    words = [one for one in words if not SPECIAL.fullmatch(tokens[one])]
    added = added_tokens(folder) if len(words) >= FEWEST_WORDS else set()
    words = [one for one in words if tokens[one] not in added]
    if len(words) >= FEWEST_WORDS:
        named = listing([f"{one} ({brief_token(tokens[one])})" for one in words], 3, where="")
        has = f"{SUPPRESSED} of {file} has words of the tokeniser, which no text can contain then"
        yield f"{has}: {named}; perhaps they are ids of another vocabulary"
