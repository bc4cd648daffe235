"""Notes on token ids that a network uses in its computation: CLIP's end of a text, and the first tokens of decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, listing
from ..documents import GENERATION
from ..folder import ModelFolder
from ..generation.languages import language_notes
from .roles import generates
from .tokenizer_files import SPECIAL, added_tokens, brief_token, object_in

__all__ = ["AT_LARGEST", "LARGEST", "READ_AT_END", "begins_with", "forced_word_notes", "used_id_notes"]

AT_LARGEST = ("clip", "clip_text_model", "clipseg", "clipseg_text_model", "groupvit", "groupvit_text_model", "xclip",
              "xclip_text_model")  # fmt: skip
"""Model types that take the features of a text at its largest token id if ``eos_token_id`` is ``LARGEST`` (2)."""
READ_AT_END = (*AT_LARGEST, "aimv2", "aimv2_text_model", "metaclip_2", "metaclip_2_text_model")
"""Model types that take the features of a text at its first token with the id ``eos_token_id``."""
ALWAYS = ("owlv2", "owlv2_text_model", "owlvit", "owlvit_text_model")
"""Model types that take the features of a text at its largest token id, whatever ``eos_token_id`` is."""
FORCED = "forced_decoder_ids"
BY_CLASS = {
    "falcon": 11, "git": 101, "gpt_neox_japanese": 31996, "hy_v4": 120000, "kimi_linear": 163584, "lfm3": 124894,
    "modernbert-decoder": 50281, "phi4_multimodal": 199999, "rembert": 312, "emu3": 151849,
    **dict.fromkeys(("codegen", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "starcoder2"), 50256),
    **dict.fromkeys(("granite_docling", "granite_swa"), 100257),
    **dict.fromkeys(("arcee", "bitnet", "csm", "cwm", "evolla", "mllama", "smollm3", "youtu"), 128000),
    **dict.fromkeys(("dots3_note", "qwen2_5_vl", "qwen2_vl"), 151643),
    **dict.fromkeys(("axk1", "axk2"), 163691), **dict.fromkeys(("minimax_m2", "minimax_m3_vl"), 200034),
}  # fmt: skip
"""{model type of a decoder: default ``bos_token_id`` of its class, or of the class of its text part}

These are the defaults of transformers 5.23. They do not depend on the tokeniser of a model.
"""
LAST = 5
"""The largest default ``bos_token_id`` of all other decoders in transformers 5.23; for most, it is 0, 1 or 2."""
LARGEST = 2
"""The wrong ``eos_token_id`` in the config.json of CLIP models from before transformers 4.32."""


def used_id_notes(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[Note]:
    """Yield notes on wrong token ids with which a network computes, so that its results are wrong.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    yield from _read_elsewhere(folder, names, places)
    yield from _read_at_largest(folder, names, places)
    yield from language_notes(folder, places)


@notes_of(NoteKind.TOKEN_IDS)
def _read_elsewhere(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if a CLIP model takes the features of a text at another token than the tokeniser's end token.

    ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    if folder.config.get("model_type") not in READ_AT_END:
        return
    value, path = _said_end(folder)
    end = places.get(names.get("eos_token", ""))
    is_old = value == LARGEST and folder.config.get("model_type") in AT_LARGEST
    if type(value) is not int or end is None or value == end or is_old:
        return
    token = next((token for token, row in places.items() if row == value), None)
    which = f" ({brief_token(token)})" if token is not None else ""
    yield (
        f"{path}eos_token_id is {value}{which} in config.json, but the tokeniser ends texts with "
        f"{brief_token(names['eos_token'])} ({end}): the features of a text are read at the first token with this id, "
        "or at the beginning of the text if no token has it"
    )


def _said_end(folder: ModelFolder) -> tuple[Any, str]:
    """Return (``eos_token_id`` of the text model in config.json, path of the section with it: "text_config." or "")."""
    part = folder.config.get("text_config")
    fields, path = (part, "text_config.") if isinstance(part, dict) else (folder.config, "")
    return fields.get("eos_token_id"), path


@notes_of(NoteKind.TOKEN_IDS)
def _read_at_largest(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if a CLIP model takes a text's features at its largest id, but some ids are above the end token's.

    If a text has a token with such an id (from textual inversion, say, or added for padding), the features are taken
    there. ``names`` maps roles to special tokens (``{"eos_token": "</s>"}``), and ``places`` maps each token to its id.
    """
    kind, end = folder.config.get("model_type"), places.get(names.get("eos_token", ""))
    value, path = _said_end(folder)
    is_old = type(value) is int and value == LARGEST and kind in AT_LARGEST
    above = [token for token, row in places.items() if token and end is not None and row > end]
    if above and (is_old or kind in ALWAYS):
        why = f"{path}eos_token_id is {LARGEST} in config.json" if is_old else f"the model is {kind}"
        higher = f"{count(len(above), 'token')} {'has an id' if len(above) == 1 else 'have ids'} above the end token"
        ends = f"{brief_token(names['eos_token'])} ({end}), for example {brief_token(above[0])}"
        yield (
            f"{why}, so the features of a text are read at its largest token id; but {higher}, {ends}: in a text "
            "with such a token, they are read at the wrong position"
        )


@notes_of(NoteKind.TOKEN_IDS)
def forced_word_notes(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[str]:
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
            yield f"{FORCED} of {file} are ids of ordinary words in the tokeniser: {examples}"


def begins_with(folder: ModelFolder, ids: Sequence[int]) -> bool:
    """Return whether a model begins a text without a prompt with the tokens ``ids``, its ``bos_token_id``.

    A decoder after an encoder begins with ``decoder_start_token_id``, and an encoder alone begins no text. The result
    is also false if ``ids`` is the default of the model's class, which may not fit the tokeniser.
    """
    sections = [object_in(folder, file) for file in (CONFIG, GENERATION)]
    is_behind = any(one.get("decoder_start_token_id") is not None for one in sections)
    is_behind = is_behind or folder.config.get("is_encoder_decoder") is True
    usual = BY_CLASS.get(str(folder.config.get("model_type")))
    return generates(folder) and not is_behind and all(one > LAST and one != usual for one in ids)
