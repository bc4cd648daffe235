"""Notes on token ids that a network computes with: the token at which CLIP reads a text, and Whisper's first tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....util.text import listing
from ..documents import GENERATION
from ..folder import ModelFolder
from .tokenizer_files import brief_token, object_in

__all__ = ["used_id_notes"]

READ_AT_END = ("clip", "clip_text_model", "clipseg", "clipseg_text_model", "groupvit", "groupvit_text_model", "xclip",
               "xclip_text_model")  # fmt: skip
"""Model types that take the features of a text at its first token with the id ``eos_token_id``."""
LARGEST = 2
"""With this ``eos_token_id``, which older config.json files have, these models read a text at its largest token id."""


def used_id_notes(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield notes on wrong token ids with which a network would compute wrong results.

    ``names`` has the tokeniser's special tokens by role (``eos_token``), and ``places`` the id of each token.
    """
    yield from _read_elsewhere(folder, names, places)
    yield from _begun_otherwise(object_in(folder, GENERATION), places)


def _read_elsewhere(folder: ModelFolder, names: Mapping[str, str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if a CLIP model reads texts at another token than the one with which its tokeniser ends them."""
    if folder.config.get("model_type") not in READ_AT_END:
        return
    part = folder.config.get("text_config")
    fields, path = (part, "text_config.") if isinstance(part, dict) else (folder.config, "")
    value, end = fields.get("eos_token_id"), places.get(names.get("eos_token", ""))
    if type(value) is not int or end is None or value in (end, LARGEST):
        return
    token = next((token for token, row in places.items() if row == value), None)
    which = f" ({brief_token(token)})" if token is not None else ""
    yield (
        f"{path}eos_token_id is {value}{which} in config.json, but the tokeniser ends texts with "
        f"{brief_token(names['eos_token'])} ({end}): the features of a text are read at the first token with this id, "
        "or at its beginning if it has none"
    )


def _begun_otherwise(fields: Mapping[str, Any], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if Whisper's ``forced_decoder_ids`` has ids that this file does not give to a language or task."""
    forced, last = fields.get("forced_decoder_ids"), fields.get("no_timestamps_token_id")
    maps = [fields.get(name) for name in ("lang_to_id", "task_to_id")]
    if type(last) is not int or not isinstance(forced, list) or not all(isinstance(one, dict) for one in maps):
        return
    known = {row for one in maps if isinstance(one, dict) for row in one.values()} | {last}
    pairs = [one for one in forced if isinstance(one, list) and len(one) == 2 and type(one[1]) is int]
    tokens = {row: token for token, row in places.items()}
    found = [
        f"{row} ({brief_token(tokens[row])})" if row in tokens else str(row)
        for _, row in pairs
        if row not in known and row < last
    ]
    if found:
        yield (
            f"forced_decoder_ids of {GENERATION} has {listing(found, 3, where='')}, which lang_to_id, task_to_id and "
            "no_timestamps_token_id of this file do not have: are these ids of another version of Whisper?"
        )
