"""Coqui STT's CSV: ``wav_filename`` (relative to the CSV), ``wav_filesize`` (optional) and ``transcript``."""

from __future__ import annotations

import math

from ...errors import ConfigError
from ...util.text import escape
from ..data.sound import Clip
from ._text import CSV, Marks, file_beside, read_rows

__all__ = ["MANIFEST"]


class _CoquiCSV:
    kind = "a CSV with wav_filename and transcript (Coqui STT)"

    marks = (
        Marks(CSV, frozenset({"wav_filename"})),
        Marks(CSV, frozenset({"transcript"}), lacks=frozenset({"ID"})),
    )

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips. ``wav_filesize``, by which Coqui STT sorts clips, is checked but not used."""
        clips = []
        for where, row in read_rows(path, ("wav_filename", "transcript") if texts else ("wav_filename",)):
            size = row.get("wav_filesize", "1").strip()
            if not (size.isascii() and size.isdigit() and int(size[:18]) > 0):
                raise ConfigError(
                    f"{where}: wav_filesize is {escape(size, 40)!r}, not a number of bytes above 0.",
                    hint="Write the values in the order of the columns in the first line. wav_filesize is optional.",
                )
            if not row["wav_filename"]:
                raise ConfigError(
                    f"{where}: wav_filename is empty.", hint="Write the path of the sound, or remove the line."
                )
            text = row["transcript"] if texts else ""
            clips.append(Clip(file_beside(path, row["wav_filename"]), text, where, math.nan))
        return clips


MANIFEST = _CoquiCSV()
