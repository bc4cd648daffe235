"""Notes on generation settings that contradict the model or each other: start token, lengths, beams, languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import brief_repr, count, escape
from ..documents import GENERATION
from ..folder import ModelFolder
from .alignment import generation_settings

__all__ = ["generation_notes"]

START = "decoder_start_token_id"
STARTED = ("mt5", "t5", "umt5")
"""Model types whose decoder starts with ``decoder_start_token_id``. For t5, this field has no default."""
RELATIVE = (*STARTED, "bloom", "longt5", "mpt", "pix2struct", "pop2piano", "switch_transformers", "udop", "xlnet")
"""Model types with relative positions, which do not limit the length of a text."""
POSITIONS = ("max_target_positions", "max_position_embeddings", "n_positions")
"""Fields with the number of positions of a decoder; the first that exists is used."""
LENGTHS = (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens"))
ABOVE_0, UP_TO_1 = "is not above 0", "is not from 0 to 1"
SAMPLED = {"temperature": ABOVE_0, "top_k": "is below 0", "min_p": UP_TO_1}
"""{field that is read only for sampling (``do_sample``): reason why ``generate`` refuses some values}"""
ALWAYS = {"repetition_penalty": ABOVE_0, "num_beams": ABOVE_0, "max_new_tokens": ABOVE_0}
"""{field that generation always reads: reason why ``generate`` refuses some values}"""


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def generation_notes(folder: ModelFolder) -> Iterator[str]:
    """Yield notes on generation settings that contradict the model or another setting."""
    config, settings = folder.config, generation_settings(folder)
    yield from _start(config, settings)
    for name, fields in ((CONFIG, config), (GENERATION, settings)):
        yield from _lengths(name, fields, config)
    yield from _refused(settings)
    languages = settings.get("lang_to_id")
    is_whisper = config.get("model_type") == "whisper"
    if is_whisper and settings.get("is_multilingual") is False and isinstance(languages, dict) and len(languages) > 1:
        has = f"lang_to_id has {count(len(languages), 'language')}"
        yield f"{GENERATION} says is_multilingual: false, but {has}: transformers refuses to set a language"


@notes_of(NoteKind.CONFIGURATION)
def _start(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if an encoder-decoder like T5 has no start token of the decoder, in ``config`` or in ``settings``.

    ``settings`` has the fields of generation_config.json.
    """
    kind, names = config.get("model_type"), config.get("architectures")
    is_told = START in config or (kind == "t5" and settings)
    is_started = any(isinstance(one, Mapping) and one.get(START) is not None for one in (config, settings))
    has_decoder = isinstance(names, list) and any(str(one).endswith("ForConditionalGeneration") for one in names)
    if kind in STARTED and has_decoder and is_told and not is_started and config.get("bos_token_id") is None:
        yield f"{START} is in neither config.json nor {GENERATION}: neither training nor generation can begin"


@notes_of(NoteKind.CONFIGURATION)
def _lengths(name: str, fields: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on impossible lengths in file ``name``: beyond the model's positions, or a minimum above a maximum.

    ``fields`` are the fields of this file, and ``config`` those of config.json.
    """
    field = next((one for one in POSITIONS if config.get(one) is not None), "")
    positions, longest = config.get(field), fields.get("max_length")
    is_fixed = not _is_stretched(config) and config.get("model_type") not in RELATIVE
    if type(longest) is int and type(positions) is int and 0 < positions < longest and is_fixed:
        has = f"the model has {count(positions, 'position')} ({field})"
        yield f"{name} says {longest} (max_length), but {has}: longer texts fail or make no sense"
    for least, most in LENGTHS:
        pair = fields.get(least), fields.get(most)
        is_overruled = least == "min_length" and fields.get("max_new_tokens") is not None
        if type(pair[0]) is int and type(pair[1]) is int and pair[0] > pair[1] > 0 and not is_overruled:
            yield (f"{name} says {pair[0]} ({least}), but {pair[1]} ({most}): no text can end by itself")


def _is_stretched(config: Mapping[str, Any]) -> bool:
    """Return whether rotary embeddings are scaled, so that texts may be longer than ``max_position_embeddings``."""
    rope = config.get("rope_parameters")
    parts = [rope, *rope.values()] if isinstance(rope, dict) else []
    types = [one.get("rope_type", "default") for one in parts if isinstance(one, dict)]
    return bool(config.get("rope_scaling")) or any(one != "default" for one in types)


@notes_of(NoteKind.CONFIGURATION)
def _refused(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on values in generation_config.json with which ``generate`` fails."""
    samples = bool(settings.get("do_sample"))
    for field, why in {**ALWAYS, **(SAMPLED if samples else {})}.items():
        value = settings.get(field)
        if value is not None and not _is_valid(value, why):
            told = why if isinstance(value, (int, float)) else "is not a number"
            yield f"{GENERATION} says {escape(brief_repr(value, 24))} ({field}), which {told}: generation fails"
    texts, beams = settings.get("num_return_sequences"), settings.get("num_beams")
    beams = beams if type(beams) is int else 1
    if type(texts) is int and texts > 1 and texts > beams > 0 and (beams > 1 or not samples):
        most = f"num_beams is {beams}" if beams > 1 else "without num_beams or do_sample, a prompt has only one result"
        yield Note(
            NoteKind.CONFIGURATION_REFUSED,
            f"{GENERATION} asks for {texts} texts (num_return_sequences), but {most}: transformers refuses the model",
        )


def _is_valid(value: Any, why: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value > 0 if why == ABOVE_0 else 0 <= value <= 1 if why == UP_TO_1 else value >= 0
