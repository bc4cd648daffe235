"""SpeechBrain's annotations: as JSON, ``{id: {wav, length or duration, words or wrd or …}}``, or as CSV.

https://speechbrain.readthedocs.io/en/latest/tutorials/basics/data-loading-pipeline.html. A clip may be a part of a
file: in JSON ``wav: {file, start, stop}``, in a CSV the columns ``start`` and ``stop``; both are in samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..data.sound import Clip, sound_rate
from ._text import (
    CSV,
    Marks,
    field_of,
    file_beside,
    parse_json,
    read_rows,
    read_text,
    seconds_of,
)

__all__ = ["MANIFEST"]

WAVES = ("wav", "file_path", "sig")
TEXTS = ("words", "wrd", "transcript", "transcription", "text", "char")
LENGTHS = ("length", "duration")
ROOTS = ("{data_root}", "$data_root")
"""The placeholders for the data folder at the beginning of a path: the first in JSON, the second in a CSV."""


class _SpeechBrain:
    kind = "a JSON of {id: {wav, words}}, or a CSV with ID and wav (SpeechBrain)"

    marks = (
        *(Marks(CSV, frozenset({"ID", name})) for name in WAVES),
        Marks((".json",), lacks=frozenset({"audio_filepath", "supervisions"})),  # not of NeMo, not of lhotse
    )

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips; ``{data_root}`` and ``$data_root`` are replaced by the manifest's folder.

        Raises ConfigError if the file is not an annotation, if an entry is invalid, or if two lines of a CSV have the
        same ID.
        """
        if not path.lower().endswith(".csv"):
            named = _annotation(path).items()
            return [_clip(path, f"{escape(path)}, {escape(name)}", entry, texts=texts) for name, entry in named]
        seen: dict[str, str] = {}
        clips = []
        for where, row in read_rows(path, ("ID",)):
            first = seen.setdefault(row["ID"], where)
            if first != where:
                raise ConfigError(
                    f"{where}: the ID {escape(row['ID'])} is also in {first}.", hint="Remove one of the two lines."
                )
            clips.append(_clip(path, where, _entry_of(where, row), texts=texts))
        return clips


def _annotation(path: str) -> dict[str, Any]:
    document = parse_json(escape(path), read_text(path))
    if not isinstance(document, dict):
        raise ConfigError(f"{escape(path)} is {brief_repr(document)}, not a JSON object that maps ids to clips.")
    return document


def _entry_of(where: str, row: Mapping[str, str]) -> dict[str, Any]:
    """Convert a row of a CSV to an entry of the JSON format."""
    entry: dict[str, Any] = dict(row)
    for name in LENGTHS:
        if name in row:
            entry[name] = _number(where, name, row[name])
    if row.get("start") or row.get("stop"):
        part = {name: _samples(where, name, row.get(name, "")) for name in ("start", "stop")}
        wav = next(name for name in WAVES if name in row)
        entry[wav] = {"file": row[wav], **part}
    return entry


def _number(where: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{where}: {name} is {escape(value, 40)!r}, not a number.") from None


def _samples(where: str, name: str, value: str) -> int:
    found = _number(where, name, value)
    if not found.is_integer():
        raise ConfigError(f"{where}: {name} is {escape(value, 40)!r}, not a whole number of samples.")
    return int(found)


def _clip(path: str, where: str, entry: Any, *, texts: bool) -> Clip:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: the entry is {brief_repr(entry)}, not an object with wav and words.")
    sound, begin_s, seconds = _sound(path, where, field_of(where, entry, WAVES))
    text = field_of(where, entry, TEXTS) if texts else ""
    if isinstance(text, list):  # some recipes store a list of tokens
        text = " ".join(map(str, text))
    if not isinstance(text, str):
        raise ConfigError(f"{where}: the clip's text is {brief_repr(text)}, not a string.")
    for name in LENGTHS:  # checked but not used: the sound file has the true length
        seconds_of(where, entry, name, math.nan, least=math.ulp(0))
    return Clip(sound, text, where, seconds, begin_s)


def _sound(path: str, where: str, wav: Any) -> tuple[str, float, float]:
    """Return the path of a clip's sound file, and the begin and length of the clip in the file, in seconds.

    The length is NaN if the clip lasts until the end of the file. Raises ConfigError if the path or the range of
    samples is invalid.
    """
    part: Mapping[str, Any] = wav if isinstance(wav, dict) else {"file": wav}
    name = part.get("file")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: the clip's sound is {brief_repr(wav)}, not a path.")
    for root in ROOTS:
        if name.startswith(root):
            name = os.path.dirname(os.path.abspath(path)) + name.removeprefix(root)
    if "{" in name or name.startswith("$"):
        raise ConfigError(
            f"{where}: the path {escape(name)} has a placeholder that is unknown, or that is not at its beginning.",
            hint="Write the full path, or, for the folder of the manifest, begin the path with "
            f"{ROOTS[path.lower().endswith('.csv')]}.",
        )
    sound = file_beside(path, name)
    start, stop = part.get("start", 0), part.get("stop")
    if stop is None and not start:
        return sound, 0.0, math.nan
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
        raise ConfigError(
            f"{where}: the clip goes from sample {brief_repr(start)} to {brief_repr(stop)}.",
            hint="start and stop must be whole numbers of samples, and stop must be above start.",
        )
    rate = sound_rate(sound, where)
    return sound, start / rate, (stop - start) / rate


MANIFEST = _SpeechBrain()
