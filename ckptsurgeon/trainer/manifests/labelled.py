"""A CSV for classification: ``path`` (relative to the CSV) of a sound or an array (``.npy``), and its ``label``."""

from __future__ import annotations

import math

from ...errors import ConfigError
from ..data.sound import Clip
from ._text import CSV, Marks, file_beside, read_rows

__all__ = ["MANIFEST"]


class _LabelledCSV:
    kind = "a CSV with path and label (classification)"

    marks = (Marks(CSV, frozenset({"label"})),)
    """``read`` raises if the column ``path`` is missing."""

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the examples as clips; the ``text`` of a clip is its class, and is read even if ``texts`` is false."""
        clips = []
        for where, row in read_rows(path, ("path", "label")):
            if not row["path"]:
                raise ConfigError(f"{where}: path is empty.", hint="Write the path, or remove the line.")
            clips.append(Clip(file_beside(path, row["path"]), row["label"], where, math.nan))
        return clips


MANIFEST = _LabelledCSV()
