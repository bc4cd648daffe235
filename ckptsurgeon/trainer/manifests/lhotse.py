"""lhotse's cuts: ``cuts.jsonl`` or ``cuts.jsonl.gz``, with a JSON object for each part of a recording (cut).

https://lhotse.readthedocs.io/en/latest/cuts.html. A cut must be a MonoCut of a sound file, with one supervision that
has a text. Cuts that lhotse would have to compute first (mixed cuts, changed speed, selected channels) are errors.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..data.sound import Clip
from ._text import JSON_LINES, Marks, field_of, file_beside_or_here, read_json_lines, seconds_of

__all__ = ["MANIFEST"]

_SETS = {
    "recording set": {"sources", "sampling_rate", "num_samples"},
    "supervision set": {"recording_id", "start", "duration", "text"},
}
"""Other kinds of JSON lines that lhotse writes, and the fields by which these lines are recognised."""


class _LhotseCuts:
    kind = "lines of JSON with cuts and their supervisions (lhotse)"

    marks = (
        Marks(JSON_LINES, frozenset({"start", "supervisions"})),
        Marks(JSON_LINES, frozenset({"start", "recording"})),
        Marks(JSON_LINES, frozenset({"tracks"})),
        *(Marks(JSON_LINES, frozenset(fields)) for fields in _SETS.values()),
    )
    """Cuts, and other entries of lhotse, which ``read`` refuses."""

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return one clip for each cut; raises ConfigError for entries that are not cuts."""
        return [_clip(path, where, entry, texts=texts) for where, entry in read_json_lines(path)]


def _set_of(fields: set[str]) -> str | None:
    return next((name for name, needed in _SETS.items() if needed <= fields), None)


def _clip(path: str, where: str, entry: dict[str, Any], *, texts: bool) -> Clip:
    other = _set_of(set(entry))
    if other is not None:
        raise ConfigError(
            f"{where}: the line belongs to a {other} of lhotse, which has only the texts or only the recordings.",
            hint="Combine recordings and supervisions: "
            "lhotse cut simple -r recordings.jsonl.gz -s supervisions.jsonl.gz cuts.jsonl.gz",
        )
    kind = entry.get("type", "MonoCut")
    if kind != "MonoCut":
        raise ConfigError(
            f"{where}: the cut has the type {brief_repr(kind)}, which is not supported.",
            hint="Only MonoCut is supported: save the cuts as sound files with lhotse (CutSet.save_audios).",
        )
    sound = _sound(path, where, entry)
    begin_s = seconds_of(where, entry, "start", 0.0)
    text = _text(where, entry) if texts else ""
    return Clip(sound, text, where, seconds_of(where, entry, "duration", math.nan), begin_s)


def _text(where: str, entry: dict[str, Any]) -> str:
    """Return the text of a cut's only supervision; raises ConfigError if there is not exactly one."""
    found = field_of(where, entry, ("supervisions",))
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        number = len(found) if isinstance(found, list) else brief_repr(found)
        raise ConfigError(
            f"{where}: the number of supervisions of the cut is {number}; it must be 1.",
            hint="Run lhotse cut trim-to-supervisions, which makes a cut of each supervision.",
        )
    text = found[0].get("text")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: the text of the cut's supervision is {brief_repr(text)}, not a string.")
    return text


def _sound(path: str, where: str, entry: dict[str, Any]) -> str:
    """Return the path of a cut's sound file; raises ConfigError if the cut is not a part of a single file."""
    recording = field_of(where, entry, ("recording",))
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise ConfigError(
            f"{where}: the cut's recording does not have exactly one source.",
            hint="Save each recording as one file.",
        )
    (source,) = sources
    if source.get("type") == "file" and not isinstance(source.get("source"), str):
        raise ConfigError(
            f"{where}: the cut's sound has no path: its source is {brief_repr(source.get('source'))}.",
            hint="Write the path of a sound file.",
        )
    if source.get("type") != "file":
        raise ConfigError(
            f"{where}: the cut's sound is of type {brief_repr(source.get('type'))}, not a file.",
            hint="Commands, URLs and archives are not supported. Save the sounds as files.",
        )
    if recording.get("transforms"):
        raise ConfigError(
            f"{where}: the cut's recording has transforms, which are not supported: {_names(recording['transforms'])}.",
            hint="Save the sounds with lhotse (CutSet.save_audios), or change speed and add noise with train.augment.",
        )
    channel, channels = entry.get("channel", 0), source.get("channels", [0])
    if channels != [channel]:
        raise ConfigError(
            f"{where}: the cut is channel {brief_repr(channel)} of a sound with the channels {brief_repr(channels)}.",
            hint="A single channel of a file cannot be read: save the channel as a separate file.",
        )
    return file_beside_or_here(path, source["source"])


def _names(transforms: Any) -> str:
    found = transforms if isinstance(transforms, list) else [transforms]
    return ", ".join(escape(str(one.get("name", one) if isinstance(one, dict) else one), 40) for one in found[:3])


MANIFEST = _LhotseCuts()
