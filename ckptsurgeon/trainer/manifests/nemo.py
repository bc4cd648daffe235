"""NeMo's manifest: a JSON object on each line, with ``audio_filepath``, ``duration``, ``text`` and perhaps ``offset``.

https://docs.nvidia.com/nemo-framework/user-guide/latest/nemotoolkit/asr/datasets.html. The names of these
files end in ``.json``. Tarred datasets (archives of sounds) are not supported.
"""

from __future__ import annotations

import math
import os
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape
from ..data.sound import Clip
from ._text import JSON_LINES, Marks, field_of, file_beside_or_here, read_json_lines, seconds_of

__all__ = ["MANIFEST"]


class _NeMoLines:
    kind = "lines of JSON with audio_filepath and text (NeMo)"

    marks = (Marks(JSON_LINES, frozenset({"audio_filepath"})),)

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips; a clip begins at ``offset`` and lasts ``duration``, both in seconds, as in NeMo."""
        return [_clip(path, where, entry, texts=texts) for where, entry in read_json_lines(path)]


def _clip(path: str, where: str, entry: dict[str, Any], *, texts: bool) -> Clip:
    name, text = field_of(where, entry, ("audio_filepath",)), field_of(where, entry, ("text",)) if texts else ""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: audio_filepath is {brief_repr(name)}, not a path.")
    if not isinstance(text, str):
        raise ConfigError(f"{where}: text is {brief_repr(text)}, not a string.")
    sound = file_beside_or_here(path, name)
    if "shard_id" in entry and not os.path.exists(sound):
        raise ConfigError(
            f"{where}: {escape(name)} is in an archive of a tarred dataset, and archives are not supported.",
            hint="Unpack the archives, or give the manifest from which they were made.",
        )
    begin_s = seconds_of(where, entry, "offset", 0.0)
    return Clip(sound, text, where, seconds_of(where, entry, "duration", math.nan, least=math.ulp(0)), begin_s)


MANIFEST = _NeMoLines()
