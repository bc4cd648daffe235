"""Notes on token ids in configurations that belong to a token with another role, such as the pad_token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import listing
from ..documents import GENERATION
from ..folder import ModelFolder
from ..generation.moved_ids import moved_id_notes
from ..generation.whisper_ids import TRANSCRIPT, whisper_id_notes
from .tokenizer_files import brief_token, is_ctc, object_in

__all__ = ["OF_GENERATION", "SPELLED", "generates", "role_notes"]

# A role is what a special token is used for, such as ``eos_token``. An example of an error is an ``eos_token_id`` that
# is the id of the beginning token, or of the mask token.
#
# An id is reported only if the tokeniser gives its token another role, if the token looks like that other role
# (``<pad>``, not ``<|endoftext|>``, which many models use for several roles), and if the tokeniser has the right token.

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
"""{role: regular expression of tokens that are used for this role only}"""
SHARED = {
    "eos_token": ("sep_token",),
    "bos_token": ("cls_token", "sep_token", "eos_token"),
    "forced_eos_token": ("sep_token",),
    "forced_bos_token": ("cls_token", "sep_token", "eos_token"),
    START: ("bos_token", "cls_token", "sep_token", "pad_token", "eos_token"),
    "pad_token": ("bos_token", "eos_token", "unk_token"),
    "sep_token": ("eos_token", "bos_token"),
}
"""{role of a field (pad_token for ``pad_token_id``): other roles whose token is also valid in this field}"""
OF_T5 = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Model types whose decoder begins with the padding token. (BART's decoder begins with the end token.)"""
OF_GENERATION = ("eos_token", "bos_token", "forced_eos_token", "forced_bos_token", START)
"""Roles that an encoder does not use.

In valid encoders (Nystromformer), their ids may be the defaults of the class instead of the tokeniser's ids.
"""
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSpeechSeq2Seq")
RESERVED = re.compile(r"[<\[|]*(reserved|unused|placeholder|extra_id|madeupword)\w*?\d+[|>\]]*", re.IGNORECASE)
"""Matches tokens that are reserved for later use, in Llama 3, Gemma, BERT, Phi-3, T5 and XGLM."""


@notes_of(NoteKind.CONFIGURATION)
def role_notes(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield notes on fields such as ``eos_token_id`` whose id belongs to a token with another role, such as pad_token.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    if is_ctc(folder):
        return
    own = {name: places[token] for name, token in names.items() if token in places}
    for file, fields in _sections(folder).items():
        swapped = [pair for pair in PAIRS if _are_swapped(fields, pair, own)]
        for pair in swapped:
            ids = " and ".join(f"{name}_id is {fields[f'{name}_id']}" for name in pair)
            named = " and ".join(f"{name} {brief_token(names[name])} ({own[name]})" for name in pair)
            yield f"{ids} in {file}, but the tokeniser has {named}: the two are swapped"
        said = {name for pair in swapped for name in pair}
        for field in SHARED:
            if field not in said and (generates(folder) or field not in OF_GENERATION):
                yield from _of_other_role(fields.get(f"{field}_id"), field, file, names, own)
        if folder.config.get("model_type") in OF_T5:
            yield from _starts_of_t5(fields, file, names, own)
        if generates(folder):
            yield from _forced_padding(fields.get("forced_bos_token_id"), file, names, own)
        yield from _reserved_start(fields.get(f"{START}_id"), file, places)
        if "eos_token" not in said:
            yield from _unknown_end(fields.get("eos_token_id"), file, names, own)
            yield from _reserved_end(fields.get("eos_token_id"), file, names, places)
    yield from moved_id_notes(_sections(folder), names, places, generates=generates(folder))
    yield from _starts(folder, places)
    yield from whisper_id_notes(folder, places)


def _sections(folder: ModelFolder) -> dict[str, Mapping[str, Any]]:
    """Return {name: fields} of config.json, of its section ``decoder``, and of generation_config.json.

    The section ``decoder`` (as in TrOCR) has only the fields that config.json itself lacks. It has none if there is a
    generation_config.json, because generation then reads this file instead.
    """
    config, generation = (object_in(folder, file) for file in (CONFIG, GENERATION))
    decoder = config.get("decoder") if not generation else None
    inner = decoder.items() if isinstance(decoder, dict) else ()
    used = {name: value for name, value in inner if config.get(name) is None}
    return {CONFIG: config, f"decoder in {CONFIG}": used, GENERATION: generation}


def _are_swapped(fields: Mapping[str, Any], pair: tuple[str, str], own: Mapping[str, int]) -> bool:
    ids, wanted = [fields.get(f"{name}_id") for name in pair], [own.get(name) for name in pair]
    return ids == wanted[::-1] and None not in wanted and wanted[0] != wanted[1]


def generates(folder: ModelFolder) -> bool:
    """Return whether a model generates text: it has a generation_config.json, or a class that generates."""
    has_settings = any(one.name == GENERATION for one in folder.files)
    classes = folder.config.get("architectures")
    names = classes if isinstance(classes, list) else []
    return has_settings or any(isinstance(one, str) and one.endswith(GENERATES) for one in names)


@notes_of(NoteKind.TOKEN_IDS)
def _of_other_role(
    value: Any, field: str, file: str, names: Mapping[str, str], own: Mapping[str, int]
) -> Iterator[str]:
    """Yield a note if an id in ``field`` is the id of a token with another role, and the field lacks the right id.

    ``value`` is the field's id or list of ids, and ``file`` the file with the field. ``names`` maps roles to special
    tokens (``{"eos_token": "</s>"}``), and ``own`` maps roles to the ids of these tokens.
    """
    wanted = _wanted(field, names)
    ids = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
    if wanted not in own or own[wanted] in ids or (field == "eos_token" and value == own.get("unk_token")):
        return
    for number in ids:
        roles = [role for role, place in own.items() if place == number]
        if (
            roles
            and not {field, wanted, *_shared(field, names)}.intersection(roles)
            and _is_spelled(names[roles[0]], roles)
        ):
            named = f"{brief_token(names[roles[0]])}, the {roles[0]} of the tokeniser"
            meant = "" if field == START else f", while {wanted} is {brief_token(names[wanted])} ({own[wanted]})"
            yield f"{field}_id of {file} {'is' if value == number else 'has'} {number} ({named}){meant}"


@notes_of(NoteKind.TOKEN_IDS)
def _starts_of_t5(
    fields: Mapping[str, Any], file: str, names: Mapping[str, str], own: Mapping[str, int]
) -> Iterator[str]:
    """Yield notes if a T5 model pads with its unknown token, or if its decoder does not begin with padding.

    ``file`` is the name of the file with the ``fields``. ``names`` maps roles to special tokens (``{"eos_token":
    "</s>"}``), and ``own`` maps roles to the ids of these tokens.
    """
    pad = own.get("pad_token")
    if pad is None or not _is_spelled(names["pad_token"], ["pad_token"]):
        return
    for field, others in (("pad_token", ("unk_token",)), (START, ("eos_token", "bos_token"))):
        value = fields.get(f"{field}_id")
        role = next((one for one in others if type(value) is int and own.get(one) == value != pad), "")
        if role:
            named = f"{brief_token(names[role])}, the {role} of the tokeniser"
            meant = f"padding is {brief_token(names['pad_token'])} ({pad})"
            begins = ", with which the decoder of a T5 model begins" if field == START else ""
            yield f"{field}_id of {file} is {value} ({named}), while {meant}{begins}"


@notes_of(NoteKind.TOKEN_IDS)
def _forced_padding(value: Any, file: str, names: Mapping[str, str], own: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``forced_bos_token_id`` (``value``) is the id of the padding token, and there is no bos_token.

    ``file`` is the name of the file with the field. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``),
    and ``own`` maps roles to the ids of these tokens.
    """
    padding = names.get("pad_token", "")
    roles = [role for role, place in own.items() if place == value]
    if roles == ["pad_token"] and _is_spelled(padding, roles) and "bos_token" not in own:
        named = f"{value} ({brief_token(padding)}, the pad_token of the tokeniser)"
        yield f"forced_bos_token_id of {file} is {named}: every text is forced to begin with padding"


def _shared(field: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the other roles (such as "pad_token") whose token is also valid in a field.

    A model may pad with its unknown token, as Vicuna does with ``<unk>``, but not if it has BERT's ``[PAD]`` and
    ``[UNK]``. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``).
    """
    is_of_bert = field == "pad_token" and (names.get("pad_token"), names.get("unk_token")) == ("[PAD]", "[UNK]")
    return tuple(role for role in SHARED[field] if not (is_of_bert and role == "unk_token"))


def _wanted(field: str, names: Mapping[str, str]) -> str:
    """Return the role of the token whose id a field should have; for a decoder's start token, the first known role.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``).
    """
    if field == START:
        return next((role for role in ("bos_token", "eos_token", "cls_token") if role in names), "")
    return field.removeprefix("forced_")


def _is_spelled(token: str, roles: list[str]) -> bool:
    return any(re.fullmatch(SPELLED[role], token, re.IGNORECASE) for role in roles if role in SPELLED)


@notes_of(NoteKind.TOKEN_IDS)
def _unknown_end(value: Any, file: str, names: Mapping[str, str], own: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``eos_token_id`` (``value``) is the id of the unknown token, and there is another end token.

    ``file`` is the name of the file with the field. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``),
    and ``own`` maps roles to the ids of these tokens.
    """
    end, unknown = own.get("eos_token"), own.get("unk_token")
    if value is not None and value == unknown and end not in (None, unknown):
        named = f"{brief_token(names['unk_token'])}, the unk_token of the tokeniser"
        meant = f"{brief_token(names['eos_token'])} ({end})"
        yield f"eos_token_id of {file} is {unknown} ({named}), while eos_token is {meant}"


@notes_of(NoteKind.TOKEN_IDS)
def _reserved_end(value: Any, file: str, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``eos_token_id`` (``value``) has only ids of reserved tokens, but the eos_token is not reserved.

    Reserved tokens are kept for later use. Other tokens, such as ``<|im_end|>``, get no note: chat models may have an
    end token that is not the ``eos_token`` of the tokeniser. ``file`` is the name of the file with the field. ``names``
    maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    ids = value if isinstance(value, list) else [value]
    asked = {one for one in ids if type(one) is int}
    end = names.get("eos_token", "")
    reserved = {row: token for token, row in places.items() if row in asked and RESERVED.fullmatch(token)}
    if reserved and end in places and len(reserved) == len(ids) and places[end] not in reserved:
        own = listing([f"{row} ({brief_token(token)})" for row, token in reserved.items()], 2, where="")
        what = "reserved tokens" if len(reserved) > 1 else "a reserved token"
        yield f"eos_token_id of {file} is {own}, {what}, while eos_token is {brief_token(end)} ({places[end]})"


@notes_of(NoteKind.TOKEN_IDS)
def _reserved_start(value: Any, file: str, places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if the id of a decoder's first token (``value``) is the id of a reserved token.

    ``file`` is the name of the file with the field, and ``places`` maps each token to its id.
    """
    token = next((token for token, row in places.items() if row == value and RESERVED.fullmatch(token)), "")
    if type(value) is int and token:
        yield f"{START}_id of {file} is {value} ({brief_token(token)}), a reserved token"


@notes_of(NoteKind.TOKEN_IDS)
def _starts(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note on a wrong start token of the decoder.

    For Whisper, any token other than ``<|startoftranscript|>`` is wrong. Other models get a note if config.json and
    generation_config.json have different start tokens. ``places`` maps each token to its id.
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
        yield Note(NoteKind.CONFIGURATION, f"{field} is {said}: generation begins with {found[GENERATION]}")
