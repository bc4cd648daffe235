"""Reads the ``dev`` clips that a training run transcribed with the most errors, and finds their sound files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from .html import integer, number, text
from .run_files import json_lines

__all__ = ["HYPOTHESES", "SHOWN", "WorstClips", "read_worst_clips"]

HYPOTHESES = "dev.hypotheses.jsonl"
SHOWN = 20
"""The largest number of clips that are shown."""
SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus")
"""The file name endings of sounds that a page can play."""


@dataclass(frozen=True)
class WorstClips:
    """The clips with the most errors in their transcripts, the worst first.

    ``clips`` is the number of all clips, ``wrong`` the number of clips with errors. ``worst`` has at most ``SHOWN``
    clips.
    """

    clips: int
    wrong: int
    worst: tuple[Mapping[str, Any], ...]

    @property
    def has_sounds(self) -> bool:
        """True if the sound of any clip can be played."""
        return any(clip["sound"] for clip in self.worst)

    def to_json(self) -> dict[str, Any]:
        """Return the clips as plain data, for a page."""
        return {"clips": self.clips, "wrong": self.wrong, "worst": list(self.worst)}


def read_worst_clips(run: str, page: str | None) -> WorstClips | None:
    """Return the worst clips of a training run; None if the run has no file of transcripts.

    ``page`` is the path of the page that will show the clips. The addresses of sounds are relative to it; if it is
    None, the clips have no sounds. Raises SourceError if the file cannot be read.
    """
    clips, wrong, worst = 0, 0, list[Mapping[str, Any]]()
    for row in json_lines(os.path.join(run, HYPOTHESES)):
        clips += 1
        errors = integer(row.get("errors"))
        if not errors or errors < 0:
            continue
        wrong += 1
        if len(worst) < SHOWN:  # the worst come first
            worst.append(_clip(row, errors, run, page))
    return WorstClips(clips, wrong, tuple(worst)) if clips else None


def _clip(row: Mapping[str, Any], errors: int, run: str, page: str | None) -> dict[str, Any]:
    return {
        "errors": errors,
        "cer": number(row.get("cer")),
        "seconds": number(row.get("seconds")),
        **{name: text(row.get(name)) for name in ("clip", "reference", "hypothesis")},
        "sound": _address(row, run, page) if page is not None else "",
    }


def _address(row: Mapping[str, Any], run: str, page: str) -> str:
    """Return the relative URL of a clip's sound from a page; '' if the sound file does not exist.

    The URL begins with ``./`` or ``../``, so that a browser cannot take a file name such as ``http:`` for a scheme. The
    file is not opened.
    """
    sound = row.get("sound")
    if not isinstance(sound, str) or not sound.lower().endswith(SOUNDS) or "\0" in sound:
        return ""
    path = os.path.realpath(os.path.join(run, sound))
    if not os.path.isfile(path):
        return ""
    found = os.path.relpath(path, os.path.realpath(os.path.dirname(os.path.abspath(page))))
    return quote(os.path.join(os.curdir, found), errors="surrogateescape") + _part(row)


def _part(row: Mapping[str, Any]) -> str:
    """Return the URL fragment that selects a part of a sound, in seconds (Media Fragments URI 1.0, 4.2.1)."""
    begin, seconds = number(row.get("begin_s")), number(row.get("seconds"))
    if not begin or seconds is None or begin < 0 or seconds < 0:
        return ""
    return f"#t={begin:.3f},{begin + seconds:.3f}"
