"""Notes on ids of special tokens in configurations that contradict the tokeniser, or belong to another role."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.text import escape, listing
from ....vocabulary.token_ids import LostId, stale_ids
from ..documents import GENERATION, TOKENIZER
from ..folder import ModelFolder
from .tokenizer_files import NAMES, SPECIAL, added_tokens, brief_token, is_ctc, local_tokens, named_tokens, object_in

__all__ = ["OF_GENERATION", "SPELLED", "WORD", "generates", "ids_of_roles", "role_notes", "special_id_notes"]

# Notes on ids of special tokens that are the ids of a token with another role: an end that is the beginning, a mask.
#
# A role and an id are only compared if the tokeniser itself names the token for another role, if the token is spelled
# like that role (``<pad>``, not ``<|endoftext|>``, which many models use for several roles), and if the tokeniser has
# the right token too.

PAIRS = (("bos_token", "eos_token"), ("eos_token", "pad_token"))
START = "decoder_start_token"
SPELLED = {
    "bos_token": r"[\[<|｜_]+(s|bos|begin.*|start.*)[\]>|｜_]+",
    "cls_token": r"[\[<]cls[\]>]",
    "sep_token": r"[\[<]sep[\]>]",
    "pad_token": r"[\[<|｜_]+pad(ding)?[\]>|｜_]+",
    "unk_token": r"[\[<|｜_]+unk(nown)?[\]>|｜_]+",
    "mask_token": r"[\[<|｜_]+mask[\]>|｜_]+",
}
"""How the tokens of a role are spelled if they have no other role."""
SHARED = {
    "eos_token": ("sep_token",),
    "bos_token": ("cls_token", "sep_token", "eos_token"),
    "forced_eos_token": ("sep_token",),
    "forced_bos_token": ("cls_token", "sep_token", "eos_token"),
    START: ("bos_token", "cls_token", "sep_token", "pad_token", "eos_token"),
    "pad_token": ("bos_token", "eos_token", "unk_token"),
    "sep_token": ("eos_token", "bos_token"),
}
"""Fields, each with the other roles whose tokens valid models also have in it."""
OF_GENERATION = ("eos_token", "bos_token", "forced_eos_token", "forced_bos_token", START)
"""Fields that an encoder does not use: valid ones have whatever the default of their class is (Nystromformer)."""
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSpeechSeq2Seq")
TRANSCRIPT, TRANSLATE = "<|startoftranscript|>", "<|translate|>"
"""The token that a decoder of Whisper begins with, and its first task; the languages are between them."""
SUPPRESSED = "suppress_tokens"
RESERVED = re.compile(r"[<\[|]*(reserved|unused|placeholder|extra_id|madeupword)\w*?\d+[|>\]]*", re.IGNORECASE)
"""Tokens that no text has, kept for later use: of Llama 3, Gemma, BERT, Phi-3, T5 and XGLM."""


def role_notes(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield notes on ids of special tokens in configurations that are those of a token with another role.

    ``names`` has the tokeniser's special tokens by role (``eos_token``), and ``places`` the id of each token.
    """
    if is_ctc(folder):
        return
    own = {name: places[token] for name, token in names.items() if token in places}
    for file in (CONFIG, GENERATION):
        fields = object_in(folder, file)
        swapped = [pair for pair in PAIRS if _are_swapped(fields, pair, own)]
        for pair in swapped:
            ids = " and ".join(f"{name}_id is {fields[f'{name}_id']}" for name in pair)
            named = " and ".join(f"{name} {brief_token(names[name])} ({own[name]})" for name in pair)
            yield f"{ids} in {file}, but the tokeniser beside it has {named}: the two are swapped"
        said = {name for pair in swapped for name in pair}
        for field in SHARED:
            if field not in said and (generates(folder) or field not in OF_GENERATION):
                yield from _of_other_role(fields.get(f"{field}_id"), field, file, names, own)
        if "eos_token" not in said:
            yield from _unknown_end(fields.get("eos_token_id"), file, names, own)
            yield from _reserved_end(fields.get("eos_token_id"), file, names, places)
    yield from _starts(folder, places)
    yield from _suppressed_languages(object_in(folder, GENERATION), places)


def _are_swapped(fields: Mapping[str, Any], pair: tuple[str, str], own: Mapping[str, int]) -> bool:
    ids, wanted = [fields.get(f"{name}_id") for name in pair], [own.get(name) for name in pair]
    return ids == wanted[::-1] and None not in wanted and wanted[0] != wanted[1]


def generates(folder: ModelFolder) -> bool:
    """Whether a model generates text, according to its files and its class."""
    has_settings = any(one.name == GENERATION for one in folder.files)
    classes = folder.config.get("architectures")
    names = classes if isinstance(classes, list) else []
    return has_settings or any(isinstance(one, str) and one.endswith(GENERATES) for one in names)


def _of_other_role(
    value: Any, field: str, file: str, names: Mapping[str, str], own: Mapping[str, int]
) -> Iterator[str]:
    """Yield a note if an id in ``field`` is that of a token with another role, and the right id is not in the field.

    ``value`` is the field's id or list of ids, ``file`` the file with the field, and ``own`` has the ids by role.
    """
    wanted = _wanted(field, names)
    ids = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
    if wanted not in own or own[wanted] in ids or (field == "eos_token" and value == own.get("unk_token")):
        return
    for number in ids:
        roles = [role for role, place in own.items() if place == number]
        if roles and not {field, wanted, *SHARED[field]}.intersection(roles) and _is_spelled(names[roles[0]], roles):
            named = f"{brief_token(names[roles[0]])}, the {roles[0]} of the tokeniser beside it"
            meant = "" if field == START else f", while {wanted} is {brief_token(names[wanted])} ({own[wanted]})"
            yield f"{field}_id of {file} {'is' if value == number else 'has'} {number} ({named}){meant}"


def _wanted(field: str, names: Mapping[str, str]) -> str:
    """Return the role whose token a field should have; for a decoder's start, the first of those it may have."""
    if field == START:
        return next((role for role in ("bos_token", "eos_token", "cls_token") if role in names), "")
    return field.removeprefix("forced_")


def _is_spelled(token: str, roles: list[str]) -> bool:
    return any(re.fullmatch(SPELLED[role], token, re.IGNORECASE) for role in roles if role in SPELLED)


def _unknown_end(value: Any, file: str, names: Mapping[str, str], own: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``value``, an ``eos_token_id``, is the unknown token's, and the tokeniser has another end."""
    end, unknown = own.get("eos_token"), own.get("unk_token")
    if value is not None and value == unknown and end not in (None, unknown):
        named = f"{brief_token(names['unk_token'])}, the unk_token of the tokeniser beside it"
        meant = f"{brief_token(names['eos_token'])} ({end})"
        yield f"eos_token_id of {file} is {unknown} ({named}), while eos_token is {meant}"


def _reserved_end(value: Any, file: str, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if each id in ``value``, an ``eos_token_id``, is a reserved token and the tokeniser's end is not.

    Reserved tokens are kept for later use. Other tokens, such as ``<|im_end|>``, get no note: models for chats have
    an end that the tokeniser does not name.
    """
    ids = value if isinstance(value, list) else [value]
    end = names.get("eos_token", "")
    reserved = {row: token for token, row in places.items() if row in ids and RESERVED.fullmatch(token)}
    if reserved and end in places and len(reserved) == len(ids) and places[end] not in reserved:
        own = listing([f"{row} ({brief_token(token)})" for row, token in reserved.items()], 2, where="")
        what = "reserved tokens" if len(reserved) > 1 else "a reserved token"
        yield f"eos_token_id of {file} is {own}, {what}, while eos_token is {brief_token(end)} ({places[end]})"


def _suppressed_languages(fields: Mapping[str, Any], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``suppress_tokens`` of Whisper has language tokens, as if its ids were for another version."""
    first, last = places.get(TRANSCRIPT), places.get(TRANSLATE)
    listed = fields.get(SUPPRESSED)
    if first is None or last is None or not isinstance(listed, list):
        return
    tokens = {row: token for token, row in places.items() if first < row < last}
    found = [f"{one} ({brief_token(tokens[one])})" for one in listed if type(one) is int and one in tokens]
    if found:
        what = "languages" if len(found) > 1 else "a language"
        yield f"{SUPPRESSED} of {GENERATION} has {listing(found, 3, where='')}, {what} of the tokeniser beside it"


def _starts(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note on a wrong start token of the decoder.

    For Whisper, it is wrong if it is not ``<|startoftranscript|>``; for other models, if two files disagree about it.
    """
    field = f"{START}_id"
    ids = {file: object_in(folder, file).get(field) for file in (CONFIG, GENERATION)}
    found = {file: number for file, number in ids.items() if type(number) is int}
    tokens = {row: token for token, row in places.items() if row in found.values()}
    if folder.config.get("model_type") == "whisper" and TRANSCRIPT in places:
        begins = f"{brief_token(TRANSCRIPT)} ({places[TRANSCRIPT]})"
        for file, number in found.items():
            if number != places[TRANSCRIPT] and number in tokens:
                other = f"{number} ({brief_token(tokens[number])})"
                yield f"{field} of {file} is {other}, but the decoder of Whisper begins with {begins}"
    elif len(set(found.values())) == 2 and set(found.values()) <= tokens.keys():
        said = " and ".join(f"{number} ({brief_token(tokens[number])}) in {file}" for file, number in found.items())
        yield f"{field} is {said}: generation begins with the latter"


STARTS = ("decoder_start_token", "forced_bos_token", "forced_eos_token", "no_timestamps_token", "prev_sot_token")
"""Special tokens that configurations have ids of, but tokenisers do not name."""
NESTED = ("decoder", "generator", "text_config")
"""Nested configurations from which generation takes what the outer one lacks."""
FORCED, LANGUAGES = "forced_decoder_ids", "lang_to_id"
SEPARATED = ("big_bird", "longformer")
"""Model types whose ``sep_token_id`` has a default, which the tokeniser may not know."""
WORD = re.compile(r"[A-Za-z0-9]")
OLD = "clip"
"""Part of the names of model types whose ids differ from the tokeniser's, as transformers knows (CLIPTextModel)."""


def special_id_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on ids of special tokens in configurations that are the ids of ordinary words in the tokeniser.

    Further notes are on ids of tokens with another role. ``read`` is the same folder, or one with the same tokeniser
    whose vocabulary is loaded already.
    """
    size, tokens = folder.rows, local_tokens(read) if folder.config else ()
    if not tokens or size < len(tokens) or OLD in str(folder.config.get("model_type")):
        return
    named_so = [
        f"{escape(one.field)} of {file} is {one.number} ({brief_token(one.token)})"
        for file in (CONFIG, GENERATION)
        for one in (*stale_ids(object_in(folder, file), tokens), *_unlisted_languages(folder, read, file, tokens))
    ]
    if named_so:
        yield f"ids whose tokens are not the ones that their fields name: {listing(named_so, 4, where='')}"
    names, places = named_tokens(folder), {token: row for row, token in enumerate(tokens)}
    yield from _blank(folder, names, tokens, places)
    yield from role_notes(folder, names, places)
    yield from _forced_words(folder, tokens)
    yield from _words_among_ends(folder, names, tokens)
    found = [one for one in ids_of_roles(folder) if _is_of_words(one, names, tokens)]
    if not found:
        return
    special = {*names.values(), *added_tokens(folder)}
    words = []
    for field, file, ids in found:
        named = names.get(field, "")
        if (named in places or field in _without_names(folder, names)) and special.isdisjoint(
            tokens[one] for one in ids
        ):
            own = listing([f"{one} ({brief_token(tokens[one])})" for one in ids], 2, where="")
            meant = f", while {field} is {brief_token(named)} ({places[named]})" if named else ""
            words.append(f"{field}_id of {file} is {own}{meant}")
    if words:
        yield f"ids of special tokens that are other words in the tokeniser: {listing(words, 4, where='')}"


def _blank(
    folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...], places: dict[str, int]
) -> Iterator[str]:
    """Yield a note if the blank of a CTC model is not the pad_token of the tokeniser but another special token."""
    number, blank = folder.config.get("pad_token_id"), names.get("pad_token", "")
    if not is_ctc(folder) or type(number) is not int or not 0 <= number < len(tokens) or blank not in places:
        return
    if number != places[blank] and SPECIAL.fullmatch(tokens[number]):
        own = f"pad_token_id of {CONFIG}, the blank of CTC, is {number} ({brief_token(tokens[number])})"
        yield f"{own}, and pad_token of {TOKENIZER} is {brief_token(blank)} ({places[blank]})"


def _unlisted_languages(folder: ModelFolder, read: ModelFolder, file: str, tokens: tuple[str, ...]) -> Iterator[LostId]:
    """Yield the ids in ``lang_to_id`` of ``file`` whose language token the tokeniser lacks.

    Nothing is yielded if the vocabulary file may lack added tokens.
    """
    languages, known = object_in(folder, file).get(LANGUAGES), frozenset(tokens)
    for name, number in languages.items() if isinstance(languages, dict) and read.has_all_tokens else ():
        if name not in known and type(number) is int and 0 <= number < len(tokens) and tokens[number]:
            yield LostId(f"{LANGUAGES}.{name}", number, tokens[number])


def _forced_words(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if the tokens that a decoder is forced to begin with are ordinary words."""
    for file in (CONFIG, GENERATION):
        pairs = object_in(folder, file).get(FORCED)
        rows = [one for one in pairs if isinstance(one, list) and len(one) == 2] if isinstance(pairs, list) else []
        ids = [one[1] for one in rows if type(one[1]) is int and 0 <= one[1] < len(tokens)]
        if (
            ids
            and not any(SPECIAL.fullmatch(tokens[one]) for one in ids)
            and added_tokens(folder).isdisjoint(tokens[one] for one in ids)
        ):
            examples = listing([f"{one} ({brief_token(tokens[one])})" for one in ids], 3, where="")
            yield f"{FORCED} of {file} are ids of words in the tokeniser beside it: {examples}"


def _words_among_ends(folder: ModelFolder, names: dict[str, str], tokens: tuple[str, ...]) -> Iterator[str]:
    """Yield a note if ``eos_token_id`` lists an ordinary word besides the right token: generation stops at it.

    Line ends and other signs get no note: models that write one line stop there (BLIP-2).
    """
    for file in (CONFIG, GENERATION):
        ids = object_in(folder, file).get("eos_token_id")
        rows = [one for one in ids if type(one) is int and 0 <= one < len(tokens)] if isinstance(ids, list) else []
        if names.get("eos_token") in [tokens[one] for one in rows]:
            words = {
                one: tokens[one] for one in rows if WORD.search(tokens[one]) and not SPECIAL.fullmatch(tokens[one])
            }
            special = {*names.values(), *added_tokens(folder)} if words else set()
            found = [f"{one} ({brief_token(word)})" for one, word in words.items() if word not in special]
            if found:
                listed = f"{listing(found, 3, where='')} besides {brief_token(names['eos_token'])}"
                yield f"eos_token_id of {file} lists {listed}: generation stops at ordinary words of the tokeniser"


def _without_names(folder: ModelFolder, names: dict[str, str]) -> tuple[str, ...]:
    """Return the special tokens whose id may not be that of an ordinary word, even if no file names the token."""
    is_default = folder.config.get("model_type") in SEPARATED
    return STARTS if is_default or "sep_token" in names else (*STARTS, "sep_token")


def ids_of_roles(folder: ModelFolder) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (name, file, ids) for each special token whose ids are in config.json or generation_config.json."""
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
    """Yield the end token that generation takes from a nested configuration, if no other file or field has one.

    ``GenerationConfig.from_model_config`` of transformers does the same.
    """
    if any(one.name == GENERATION for one in folder.files) or folder.config.get("eos_token_id") is not None:
        return
    part = next((one for one in NESTED if folder.config.get(one)), "")
    fields = folder.config.get(part)
    value = fields.get("eos_token_id") if isinstance(fields, dict) else None
    ids: list[Any] = value if isinstance(value, list) else [value]
    if ids and all(type(one) is int for one in ids):
        yield "eos_token", f"{part} in {CONFIG}", ids


def _is_of_words(one: tuple[str, str, list[int]], names: dict[str, str], tokens: tuple[str, ...]) -> bool:
    """Whether ``one``, (name, file, ids), has only ids of tokens that look like words, none the special token's."""
    field, _, ids = one
    own = [tokens[number] if 0 <= number < len(tokens) else "" for number in ids]
    return names.get(field) not in own and bool(names) and not any(map(SPECIAL.fullmatch, own))
