"""Notes on ids of special tokens in configurations that contradict the tokeniser beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...destinations.hf.files import CONFIG
from ...util.text import escape, listing
from ...vocabulary.token_ids import LostId, stale_ids
from .documents import GENERATION, TOKENIZER
from .folder import ModelFolder
from .tokenizer_files import NAMES, SPECIAL, added_tokens, brief_token, is_ctc, local_tokens, named_tokens, object_in

__all__ = ["special_id_notes"]

STARTS = ("decoder_start_token", "forced_bos_token", "forced_eos_token", "no_timestamps_token", "prev_sot_token")
"""Special tokens that configurations have ids of, but tokenisers do not name."""
ROLES = (("bos_token", "eos_token"), ("eos_token", "pad_token"))
FORCED, LANGUAGES = "forced_decoder_ids", "lang_to_id"
OLD = "clip"
"""Part of the names of model types whose ids differ from the tokeniser's, as transformers knows (CLIPTextModel)."""


def special_id_notes(folder: ModelFolder, read: ModelFolder) -> Iterator[str]:
    """Yield notes on ids of special tokens in configurations that are the ids of ordinary words in the tokeniser.

    An id of another special token gets no note: many valid models have that. ``read`` is the folder whose vocabulary
    has been read.
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
    yield from _of_other_roles(folder, names, places)
    yield from _forced_words(folder, tokens)
    found = [one for one in _ids(folder) if _is_of_words(one, names, tokens)]
    if not found:
        return
    special = {*names.values(), *added_tokens(folder)}
    words = []
    for field, file, ids in found:
        named = names.get(field, "")
        if (named in places or field in STARTS) and special.isdisjoint(tokens[one] for one in ids):
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
    """Yield the ids in ``lang_to_id`` whose language token is not in the tokeniser, if all its tokens are known."""
    languages, known = object_in(folder, file).get(LANGUAGES), frozenset(tokens)
    for name, number in languages.items() if isinstance(languages, dict) and read.has_all_tokens else ():
        if name not in known and type(number) is int and 0 <= number < len(tokens) and tokens[number]:
            yield LostId(f"{LANGUAGES}.{name}", number, tokens[number])


def _of_other_roles(folder: ModelFolder, names: dict[str, str], places: dict[str, int]) -> Iterator[str]:
    """Yield a note if the ids of two special tokens are swapped, or if eos_token_id is the id of the unknown token."""
    if is_ctc(folder):
        return
    for file in (CONFIG, GENERATION):
        fields, own = object_in(folder, file), {name: places.get(token, -1) for name, token in names.items()}
        for pair in ROLES:
            ids = [fields.get(f"{name}_id") for name in pair]
            wanted = [own.get(name, -1) for name in pair]
            if ids == wanted[::-1] and min(wanted) >= 0 and wanted[0] != wanted[1]:
                swapped = " and ".join(f"{name}_id is {number}" for name, number in zip(pair, ids, strict=True))
                named = " and ".join(f"{name} {brief_token(names[name])} ({own[name]})" for name in pair)
                yield f"{swapped} in {file}, but the tokeniser beside it has {named}: the two are swapped"
        end, unknown = own.get("eos_token", -1), own.get("unk_token", -1)
        if fields.get("eos_token_id") == unknown and min(end, unknown) >= 0 and end != unknown:
            named = f"{brief_token(names['unk_token'])}, the unk_token of the tokeniser beside it"
            meant = f"{brief_token(names['eos_token'])} ({end})"
            yield f"eos_token_id of {file} is {unknown} ({named}), while eos_token is {meant}"


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


def _ids(folder: ModelFolder) -> Iterator[tuple[str, str, list[int]]]:
    """Yield each special token in the configurations: its name, the file, and its ids."""
    names = ("pad_token",) if is_ctc(folder) else (*NAMES, *STARTS)
    for file in (CONFIG, GENERATION):
        fields = object_in(folder, file)
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
