"""lhotse's cuts: ``cuts.jsonl`` or ``cuts.jsonl.gz``, an object of JSON for each part of a recording.

https://lhotse.readthedocs.io/en/latest/cuts.html. A cut must be a MonoCut of a sound in a file, with one supervision
that has a text. What would have to be computed first (mixed cuts, changed speed, channels) is an error.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..data.sound import Clip
from ._text import field_of, fields_of_first_line, file_beside_or_here, read_json_lines, seconds_of

__all__ = ["MANIFEST"]

_SETS = {
    "recording sets": {"sources", "sampling_rate", "num_samples"},
    "supervision sets": {"recording_id", "start", "duration", "text"},
}
"""What lhotse also writes as lines of JSON, by the fields that each has."""


class _LhotseCuts:
    kind = "lines of JSON with cuts and their supervisions (lhotse)"

    def sniff(self, path: str) -> bool:
        """Return whether the first line of a file is an object of lhotse; ``read`` raises if it is not a cut."""
        fields = fields_of_first_line(path)
        is_cut = "start" in fields and bool(fields & {"supervisions", "recording"})
        return is_cut or "tracks" in fields or _set_of(fields) is not None

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips, one of each cut."""
        return [_clip(path, where, entry, texts=texts) for where, entry in read_json_lines(path)]


def _set_of(fields: set[str]) -> str | None:
    return next((name for name, needed in _SETS.items() if needed <= fields), None)


def _clip(path: str, where: str, entry: dict[str, Any], *, texts: bool) -> Clip:
    other = _set_of(set(entry))
    if other is not None:
        raise ConfigError(
            f"{where}: the line is one of lhotse's {other}, which lack either the texts or the sounds.",
            hint="Combine recordings and supervisions: "
            "lhotse cut simple -r recordings.jsonl.gz -s supervisions.jsonl.gz cuts.jsonl.gz",
        )
    kind = entry.get("type", "MonoCut")
    if kind != "MonoCut":
        raise ConfigError(
            f"{where}: the cut is a {brief_repr(kind)}, which is more than a part of one recording.",
            hint="Only MonoCut is read: save the cuts as sounds with lhotse (CutSet.save_audios).",
        )
    sound = _sound(path, where, entry)
    begin_s = seconds_of(where, entry, "start", 0.0)
    text = _text(where, entry) if texts else ""
    return Clip(sound, text, where, seconds_of(where, entry, "duration", math.nan), begin_s)


def _text(where: str, entry: dict[str, Any]) -> str:
    """Return the text of the one supervision of a cut."""
    found = field_of(where, entry, ("supervisions",))
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
        number = len(found) if isinstance(found, list) else brief_repr(found)
        raise ConfigError(
            f"{where}: the number of the cut's supervisions is {number}, but a clip has one text.",
            hint="Run lhotse cut trim-to-supervisions, which makes a cut of each supervision.",
        )
    text = found[0].get("text")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: the text of the cut's supervision is {brief_repr(text)}, not a text.")
    return text


def _sound(path: str, where: str, entry: dict[str, Any]) -> str:
    """Return the path of a cut's sound; raises ConfigError if the cut is more than a part of one sound file."""
    recording = field_of(where, entry, ("recording",))
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise ConfigError(
            f"{where}: the cut's recording has no single source.", hint="Save each recording as one sound file."
        )
    (source,) = sources
    if source.get("type") != "file" or not isinstance(source.get("source"), str):
        raise ConfigError(
            f"{where}: the cut's sound is of type {brief_repr(source.get('type'))}, not a file.",
            hint="Commands, addresses and archives of a manifest are not read. Save the sounds as files.",
        )
    if recording.get("transforms"):
        raise ConfigError(
            f"{where}: the cut's recording is transformed ({_names(recording['transforms'])}); only files are read.",
            hint="Save the sounds with lhotse (CutSet.save_audios), or let train.augment change speed and add noise.",
        )
    channel, channels = entry.get("channel", 0), source.get("channels", [0])
    if channels != [channel]:
        raise ConfigError(
            f"{where}: the cut is channel {brief_repr(channel)} of a sound with the channels {brief_repr(channels)}.",
            hint="One channel cannot be read alone: save the channel as a file of its own.",
        )
    return file_beside_or_here(path, source["source"])


def _names(transforms: Any) -> str:
    found = transforms if isinstance(transforms, list) else [transforms]
    return ", ".join(escape(str(one.get("name", one) if isinstance(one, dict) else one), 40) for one in found[:3])


MANIFEST = _LhotseCuts()
