"""SpeechBrain's JSON annotation: ``{id: {wav, length or duration, words or wrd or …}}``.

https://speechbrain.readthedocs.io/en/latest/tutorials/basics/data-loading-pipeline.html. A clip may be a part of a
file: ``wav: {file, start, stop}``, in samples.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..data.sound import Clip, sound_rate
from ._text import file_beside, read_text

__all__ = ["MANIFEST"]

WAVES = ("wav", "file_path", "sig")
TEXTS = ("words", "wrd", "transcript", "transcription", "text", "char")
LENGTHS = ("length", "duration")
ROOT = "{data_root}"


class _SpeechBrainJSON:
    kind = "a JSON of {id: {wav, words}} (SpeechBrain)"

    def sniff(self, path: str) -> bool:
        """Return whether a path is a JSON file."""
        return path.lower().endswith(".json") and os.path.isfile(path)

    def read(self, path: str) -> list[Clip]:
        """Return the clips; ``{data_root}`` stands for the manifest's folder."""
        try:
            document = json.loads(read_text(path), object_pairs_hook=lambda pairs: _mapping(path, pairs))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{escape(path)} is not valid JSON: {escape(str(error))}.") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{escape(path)} is {brief_repr(document)}, not a JSON object of clips by their ids.")
        return [_clip(path, identity, entry) for identity, entry in document.items()]


def _mapping(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ConfigError(f"{escape(path)}: {escape(key)} occurs twice.", hint="Remove one.")
        made[key] = value
    return made


def _clip(path: str, identity: str, entry: Any) -> Clip:
    where = f"{escape(path)}, {escape(identity)}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: it is {brief_repr(entry)}, not an object with wav and words.")
    sound, begin_s, seconds = _sound(path, where, _field(where, entry, WAVES))
    text = _field(where, entry, TEXTS)
    if isinstance(text, list):  # some recipes keep a list of tokens
        text = " ".join(map(str, text))
    if not isinstance(text, str):
        raise ConfigError(f"{where}: its text is {brief_repr(text)}, not a text.")
    _check_length(where, entry)
    return Clip(sound, text, where, seconds, begin_s)


def _field(where: str, entry: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    found = next((name for name in names if name in entry), None)
    if found is None:
        raise ConfigError(
            f"{where}: it has no field {names[0]}.",
            hint=f"One of {', '.join(names)} is looked for; it has {', '.join(map(escape, entry))}.",
        )
    return entry[found]


def _sound(path: str, where: str, wav: Any) -> tuple[str, float, float]:
    """Return the file of a sound, the clip's begin in it, and its length if it is given."""
    part: Mapping[str, Any] = wav if isinstance(wav, dict) else {"file": wav}
    name = part.get("file")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: its sound is {brief_repr(wav)}, not a path.")
    name = name.replace(ROOT, os.path.dirname(os.path.abspath(path))) if name.startswith(ROOT) else name
    if "{" in name:
        raise ConfigError(
            f"{where}: the path {escape(name)} has a placeholder that stands for nothing here.",
            hint=f"Write the path, or {ROOT} for the folder of the manifest.",
        )
    sound = file_beside(path, name)
    start, stop = part.get("start", 0), part.get("stop")
    if stop is None and not start:
        return sound, 0.0, math.nan
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
        raise ConfigError(f"{where}: it goes from sample {brief_repr(start)} to {brief_repr(stop)}.")
    rate = sound_rate(sound, where)
    return sound, start / rate, (stop - start) / rate


def _check_length(where: str, entry: Mapping[str, Any]) -> None:
    """Raise ConfigError for a length that is not a number. The sound itself gives its true length."""
    for name in LENGTHS:
        value = entry.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{where}: {name} is {brief_repr(value)}, not a number of seconds.")


MANIFEST = _SpeechBrainJSON()
