"""Notes on token ids in Whisper's configurations that seem to be ids of another version of its token list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ....destinations.hf.files import CONFIG
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import listing
from ..documents import GENERATION
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import brief_token, object_in

__all__ = ["TRANSCRIPT", "whisper_id_notes"]

TRANSCRIPT, TRANSLATE = "<|startoftranscript|>", "<|translate|>"
"""Whisper's start token and the token of its first task. The language tokens have the ids between them."""
TASKS = (TRANSLATE, "<|transcribe|>", "<|notimestamps|>")
FORCED, SUPPRESSED = "forced_decoder_ids", "suppress_tokens"


def whisper_id_notes(folder: ModelFolder, places: Mapping[str, int]) -> Iterator[Note]:
    """Yield notes on wrong ids of forced or suppressed tokens in config.json or generation_config.json.

    ``places`` maps each token to its id.
    """
    begin, end = places.get(TRANSCRIPT), places.get(TRANSLATE)
    settings = object_in(folder, GENERATION)
    yield from _unlike_maps(settings, places)
    if begin is None or end is None:
        return
    languages = {row: token for token, row in places.items() if begin < row < end}
    yield from _forced_others(object_in(folder, CONFIG), CONFIG, languages, places)
    # with a generation_config.json, generation does not read ``suppress_tokens`` in config.json
    has_settings = any(one.name == GENERATION for one in folder.files)
    file, fields = (GENERATION, settings) if has_settings else (CONFIG, object_in(folder, CONFIG))
    yield from _suppressed_languages(fields, file, languages)


@notes_of(NoteKind.CONFIGURATION)
def _suppressed_languages(fields: Mapping[str, Any], file: str, languages: Mapping[int, str]) -> Iterator[str]:
    """Yield a note if ``suppress_tokens`` has tokens of languages, which must not be suppressed."""
    listed = fields.get(SUPPRESSED)
    listed = listed if isinstance(listed, list) else []
    found = [f"{one} ({brief_token(languages[one])})" for one in listed if type(one) is int and one in languages]
    if found:
        what = "languages" if len(found) > 1 else "a language"
        yield (
            f"{SUPPRESSED} of {file} has {listing(found, 3, where='')}, {what} of the tokeniser, which must not be "
            "suppressed"
        )


@notes_of(NoteKind.TOKEN_IDS)
def _forced_others(
    fields: Mapping[str, Any], file: str, languages: Mapping[int, str], places: Mapping[str, int]
) -> Iterator[str]:
    """Yield a note if ``forced_decoder_ids`` has tokens that are neither languages nor tasks nor timestamps."""
    known = {*languages, *(places[token] for token in TASKS if token in places)}
    tokens = {row: token for token, row in places.items() if row < places.get(TASKS[-1], 0)}
    others = dict.fromkeys(row for row in _forced(fields, places) if row in tokens and row not in known)
    found = [f"{row} ({brief_token(tokens[row])})" for row in others]
    if found:
        which = "which are neither languages nor tasks" if len(found) > 1 else "which is neither a language nor a task"
        asks = f"{'are these ids' if len(found) > 1 else 'is this an id'} of another version of Whisper?"
        yield f"{FORCED} of {file} has {listing(found, 3, where='')}, {which} of the tokeniser: {asks}"


@notes_of(NoteKind.TOKEN_IDS)
def _unlike_maps(fields: Mapping[str, Any], places: Mapping[str, int]) -> Iterator[str]:
    """Yield a note if ``forced_decoder_ids`` has ids that the same file does not list for a language or a task.

    ``fields`` are the fields of generation_config.json; its ``lang_to_id`` and ``task_to_id`` list these ids.
    ``places`` maps each token to its id.
    """
    last = fields.get("no_timestamps_token_id")
    maps = [fields.get(name) for name in ("lang_to_id", "task_to_id")]
    if type(last) is not int or not all(isinstance(one, dict) for one in maps):
        return
    known = {row for one in maps if isinstance(one, dict) for row in one.values()} | {last}
    tokens = {row: token for token, row in places.items()}
    found = [
        f"{row} ({brief_token(tokens[row])})" if row in tokens else str(row)
        for row in _forced(fields, places)
        if row not in known and row < last
    ]
    if found:
        yield (
            f"{FORCED} of {GENERATION} has {listing(found, 3, where='')}, which lang_to_id, task_to_id and "
            "no_timestamps_token_id of this file do not have: are these ids of another version of Whisper?"
        )


def _forced(fields: Mapping[str, Any], places: Mapping[str, int]) -> list[int]:
    """Return the ids in ``forced_decoder_ids``, a list of (position, id), without the start token at position 0."""
    forced = fields.get(FORCED)
    pairs = forced if isinstance(forced, list) else []
    start = [0, places.get(TRANSCRIPT)]
    return [one[1] for one in pairs if isinstance(one, list) and len(one) == 2 and type(one[1]) is int and one != start]
