"""A clip and its samples: WAV, FLAC, Ogg or an array, resampled."""

from __future__ import annotations

import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from ...errors import SourceError
from ...storage.small_files import open_file
from ...util.text import escape
from ..config.imports import require_package
from .arrow import Cell, open_cell

if TYPE_CHECKING:
    import numpy as np

    Samples = np.ndarray[Any, np.dtype[np.float32]]

__all__ = [
    "SUFFIXES",
    "TOLERANCE_S",
    "Clip",
    "is_array",
    "missing_bytes",
    "read_array",
    "read_sound",
    "sound_rate",
    "sound_seconds",
]


@dataclass(frozen=True)
class Clip:
    """One clip. ``where`` is the file and line (or key) that lists it, ``text`` its transcript or its class.

    ``seconds`` is its length, ``begin_s`` where it begins in the file, in seconds. If the file is a table, ``cell`` is
    the place of the sound in it. ``augmented`` is whether it is changed at random, as ``train.augment`` says.
    """

    path: str
    text: str
    where: str
    seconds: float
    begin_s: float = 0.0
    cell: Cell | None = None
    augmented: bool = False


SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus")
"""The endings of sounds in a folder."""
OPEN_ENDED = 0x7FFF_0000
"""Sizes of at least this mean that the end was unknown when the header was written, as for a pipe."""


def missing_bytes(sound: str | BinaryIO) -> int:
    """Return how many bytes of sound are missing from a WAV file; raises OSError.

    Returns 0 for a complete file, and for a file of another format.
    http://www-mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html
    """
    with open_file(sound) if isinstance(sound, str) else nullcontext(sound) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0
        place = 12
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            place += 8
            if name == b"data":
                return 0 if length >= OPEN_ENDED else max(0, place + length - size)
            place += length + length % 2
            file.seek(place)
    return 0


TOLERANCE_S = 0.1
"""Seconds by which the length in a manifest may differ from that of the sound."""


def is_array(path: str) -> bool:
    """Whether a file holds an array, which a model gets as it is, instead of a sound."""
    return path.endswith(".npy")


def sound_seconds(clip: Clip) -> float:
    """Return the seconds of a sound, from its header; raises SourceError, also for a sound that is cut short."""
    sound = _sound_of(clip)
    header = _header(sound, clip.path, clip.where)
    try:
        missing = missing_bytes(sound)
    except OSError as error:
        raise _unreadable(clip.path, clip.where, error) from error
    if missing:
        raise SourceError(
            f"{clip.where}: {escape(clip.path)} is cut short: {missing} bytes of the sound that its header tells of "
            "are missing.",
            hint="Copy it again, or remove it from the manifest.",
        )
    return float(header.frames / header.samplerate)


def sound_rate(path: str, where: str) -> int:
    """Return a sound's sampling rate, from its header; raises SourceError."""
    return int(_header(path, path, where).samplerate)


def _sound_of(clip: Clip) -> str | BinaryIO:
    """Return what soundfile opens: the path of a file, or the bytes of a cell as a file."""
    return clip.path if clip.cell is None else open_cell(clip.path, clip.cell, clip.where)


def _header(sound: str | BinaryIO, path: str, where: str) -> Any:
    soundfile = require_package("soundfile")
    try:
        return soundfile.info(sound)
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(path, where, error) from error


def read_sound(clip: Clip, rate: int, *, may_be_silent: bool = False) -> Samples:
    """Return a clip's samples (samples,) in float32, the mean of its channels, at ``rate``.

    Raises SourceError if it cannot be read, has no samples, contains NaN, or, unless it ``may_be_silent``, has only
    zeros.
    """
    import numpy as np

    soundfile = require_package("soundfile")
    try:
        with soundfile.SoundFile(_sound_of(clip)) as file:
            own = file.samplerate
            file.seek(min(round(clip.begin_s * own), file.frames))
            promised = min(round(clip.seconds * own), file.frames - file.tell())
            samples = file.read(round(clip.seconds * own), dtype="float32", always_2d=True)
    except (OSError, soundfile.SoundFileError) as error:
        raise _unreadable(clip.path, clip.where, error) from error
    mono: Samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1, dtype=np.float32)
    if own != rate and len(mono):
        mono = require_package("soxr").resample(mono, own, rate)
    if len(samples) < promised - TOLERANCE_S * own:
        raise _unusable(clip, f"is cut short: it ends after {len(samples) / own:g} s of {promised / own:g} s")
    if not len(mono):
        raise _unusable(clip, "has no samples")
    if not np.isfinite(mono).all():
        raise _unusable(clip, "contains values that are not numbers")
    if not may_be_silent and not mono.any():
        raise _unusable(clip, "is silent: all of its samples are 0")
    return mono


def read_array(clip: Clip) -> Any:
    """Return the array of an ``.npy`` file; nothing in it is unpickled. Raises SourceError."""
    import numpy as np

    try:
        array = np.load(clip.path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(clip.path, clip.where, error) from error
    if not isinstance(array, np.ndarray) or array.size == 0 or array.dtype.kind not in "biuf":
        raise _unusable(clip, "holds no numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _unusable(clip, "holds values that are not finite")
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)


def _unreadable(path: str, where: str, error: Exception) -> SourceError:
    why = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return SourceError(
        f"{where}: {escape(path)} cannot be read: {escape(str(why)).rstrip('.')}.",
        hint="Sounds are WAV, FLAC or OGG files.",
    )


def _unusable(clip: Clip, why: str) -> SourceError:
    begin = f" from {clip.begin_s:g} s on" if clip.begin_s else ""
    return SourceError(f"{clip.where}: {escape(clip.path)}{begin} {why}.", hint="Remove it from the manifest.")
