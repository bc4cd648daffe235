"""A data folder of Kaldi and ESPnet: ``wav.scp`` and ``text``, and optionally ``segments``.

https://kaldi-asr.org/doc/data_prep.html. An entry of ``wav.scp`` that ends in ``|`` is a command; it is never run.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ConfigError
from ...util.text import escape
from ..data.sound import Clip
from ._text import FOLDER, Marks, file_beside_or_here, place, read_text

__all__ = ["MANIFEST"]

_ARCHIVE = re.compile(r"\.ark(:\d+)?$")
_SPACE = re.compile(r"[ \t]+")


@dataclass(frozen=True)
class _Entry:
    """A line of a Kaldi file: ``value`` is the text after the id, ``where`` the file and the line number."""

    value: str
    where: str


class _KaldiFolder:
    kind = "a folder with wav.scp and text (Kaldi, ESPnet)"

    marks = (Marks(FOLDER, frozenset({"wav.scp"})), Marks(FOLDER, frozenset({"text"})))
    """A folder with one of the two files is enough; ``read`` raises ConfigError if it needs the other one."""

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips in the order of the file ``text``.

        If ``texts`` is false, the clips are in the order of ``segments``, or of ``wav.scp`` if there are no segments.
        """
        sounds = _table(os.path.join(path, "wav.scp"))
        cut = os.path.join(path, "segments")
        parts = _table(cut) if os.path.isfile(cut) else {key: _Entry(f"{key} 0 nan", "") for key in sounds}
        said = (
            _table(os.path.join(path, "text"))
            if texts
            else {key: _Entry("", _where(key, parts, sounds)) for key in parts}
        )
        silent = next((key for key in parts if key not in said), None)
        if silent is not None:
            where = _where(silent, parts, sounds)
            raise ConfigError(
                f"{where}: the file named text has no line for {escape(silent)}.",
                hint="Add a line with the transcript of the clip to that file, or remove this line.",
            )
        return [_clip(path, key, text, parts=parts, sounds=sounds) for key, text in said.items()]


def _where(key: str, parts: Mapping[str, _Entry], sounds: Mapping[str, _Entry]) -> str:
    """Return the file and line of the clip ``key``: in ``segments`` or, if there are no segments, in ``wav.scp``.

    ``parts`` are the lines of ``segments``, ``sounds`` the lines of ``wav.scp``.
    """
    return parts[key].where or sounds[key].where


def _table(path: str) -> dict[str, _Entry]:
    """Return the lines of a Kaldi file by their ids (first words); raises ConfigError for an id that appears twice."""
    table: dict[str, _Entry] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        key, *rest = _SPACE.split(line.strip(), maxsplit=1)
        if not key:
            continue
        where = place(path, number)
        if key in table:
            raise ConfigError(
                f"{where}: the id {escape(key)} is in {table[key].where} too.", hint="Remove one of the two lines."
            )
        table[key] = _Entry(rest[0] if rest else "", where)
    return table


def _clip(folder: str, key: str, text: _Entry, *, parts: Mapping[str, _Entry], sounds: Mapping[str, _Entry]) -> Clip:
    part = parts.get(key)
    if part is None:
        raise ConfigError(
            f"{text.where}: there is no audio for {escape(key)}.",
            hint="Add a line with this id to segments (to wav.scp if there are no segments), or remove this line.",
        )
    recording, begin_s, end_s = _part(part)
    if recording not in sounds:
        raise ConfigError(
            f"{part.where}: wav.scp has no line for the recording {escape(recording)}.",
            hint=f"Add a line {escape(recording)} PATH to wav.scp, or remove this line.",
        )
    return Clip(_sound(folder, sounds[recording]), text.value, text.where, end_s - begin_s, begin_s)


def _part(part: _Entry) -> tuple[str, float, float]:
    """Return the fields of a line of ``segments``: the recording's id, and the begin and end of the segment in seconds.

    The end is NaN if the segment lasts until the end of the recording (-1 in the file). Raises ConfigError for an
    invalid line.
    """
    fields = part.value.split()
    try:
        recording, begin_s, end_s = fields[0], float(fields[1]), float(fields[2])
    except (IndexError, ValueError):
        raise ConfigError(
            f"{part.where}: the line does not give a recording, and the begin and end of a segment in seconds.",
            hint="Write the line as SEGMENT RECORDING BEGIN END.",
        ) from None
    if not begin_s >= 0 or not (end_s > begin_s or end_s == -1 or math.isnan(end_s)):
        raise ConfigError(
            f"{part.where}: the segment goes from {begin_s:g} s to {end_s:g} s.",
            hint="A segment must begin at 0 or later, and end after its begin, or at -1, the end of the recording.",
        )
    return recording, begin_s, math.nan if end_s == -1 else end_s


def _sound(folder: str, entry: _Entry) -> str:
    """Return the path of the sound file in a line of ``wav.scp``.

    The file of a relative path is looked for in the data folder and then, as in Kaldi's recipes, in the working
    directory. Raises ConfigError for a command, an archive or an empty path.
    """
    name = entry.value
    if name.endswith("|"):
        raise ConfigError(
            f"{entry.where}: {escape(name, 80)} is a command, and commands in a manifest are never run.",
            hint="Run the command yourself, and write the path of the file that it makes.",
        )
    if not name or _ARCHIVE.search(name):
        raise ConfigError(
            f"{entry.where}: {escape(name, 80) or 'an empty path'} is not a sound file.",
            hint="Archives are not supported; give a WAV, FLAC or OGG file." if name else "",
        )
    return file_beside_or_here(os.path.join(folder, "wav.scp"), name)


MANIFEST = _KaldiFolder()
