"""A clip, and the samples of its sound: WAV, FLAC or Ogg, resampled."""

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
    "ARRAY",
    "NOISE",
    "SUFFIXES",
    "TOLERANCE_S",
    "Clip",
    "missing_bytes",
    "read_sound",
    "sound_rate",
    "sound_seconds",
    "unreadable",
    "unusable",
]


@dataclass(frozen=True)
class Clip:
    """One clip: a sound, a part of a sound, or an array, with its text.

    ``path`` is the file of the sound or array, ``text`` the transcript or the class. ``where`` is the line (or key) of
    the manifest that lists the clip, for messages; for a sound that the user names, it is the path, and for a noise,
    ``NOISE``. ``seconds`` is the length of the clip, and ``begin_s`` the time at
    which the clip begins in the file, in seconds. If the file is a table, ``cell`` is the cell with the sound.
    ``augmented`` is true if ``train.augment`` changes the clip at random.
    """

    path: str
    text: str
    where: str
    seconds: float
    begin_s: float = 0.0
    cell: Cell | None = None
    augmented: bool = False


SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus")
"""The file name extensions of sounds."""
NOISE = "train.augment.noise"
"""The setting that lists sounds of noise."""
ARRAY = ".npy"
"""The file name extension of an array, which a model gets unchanged."""
OPEN_ENDED = 0x7FFF_0000
"""If the size in a WAV header is at least this, the writer did not know the length, for example in a pipe."""


def missing_bytes(sound: str | BinaryIO) -> int:
    """Return the number of bytes of sound that are missing from a WAV file; raises OSError if it cannot be read.

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


CANCELLED = 1e-4
"""Channels cancel each other if their mean has less than this part of their power (-40 dB); of equal noise it is half.

Lossy compression leaves a little of two channels that were opposite.
"""
TOLERANCE_S = 0.1
"""The maximum difference in seconds between the length in a manifest and the length of the sound."""


def sound_seconds(clip: Clip) -> float:
    """Return the length of the whole sound file of a clip in seconds, from the header of the file.

    Raises SourceError for a file that cannot be read or is truncated.
    """
    sound = _sound_of(clip)
    try:
        missing = missing_bytes(sound)  # called first, because soundfile would wait for a FIFO
    except OSError as error:
        raise unreadable(clip.path, clip.where, error) from error
    size = os.path.getsize(sound) if isinstance(sound, str) else sound.seek(0, os.SEEK_END)
    if not size:
        hint = f"Copy the file again, or {_leave_out(clip)}."
        raise SourceError(f"{_named(clip.path, clip.where)} is an empty file.", hint=hint)
    if not isinstance(sound, str):
        sound.seek(0)
    header = _header(sound, clip.path, clip.where)
    if missing:
        raise SourceError(
            f"{_named(clip.path, clip.where)} is truncated: {missing} bytes of the sound that its header promises "
            "are missing.",
            hint=f"Copy the file again, or {_leave_out(clip)}.",
        )
    return float(header.frames / header.samplerate)


def sound_rate(path: str, where: str) -> int:
    """Return a sound's sampling rate in hertz, from its header.

    Raises SourceError if the file cannot be read; its message begins with ``where``.
    """
    try:
        with open_file(path):  # soundfile would wait for a FIFO
            return int(_header(path, path, where).samplerate)
    except OSError as error:
        raise unreadable(path, where, error) from error


def _sound_of(clip: Clip) -> str | BinaryIO:
    """Return the argument of soundfile for a clip: a path, or a file object for the bytes in a table's cell."""
    return clip.path if clip.cell is None else open_cell(clip.path, clip.cell, clip.where)


def _header(sound: str | BinaryIO, path: str, where: str) -> Any:
    soundfile = require_package("soundfile")
    try:
        return soundfile.info(sound)
    except (OSError, soundfile.SoundFileError) as error:
        raise unreadable(path, where, error) from error


def read_sound(clip: Clip, rate: int, *, may_be_silent: bool = False) -> Samples:
    """Return a clip's samples (samples,) as float32: the mean of its channels, resampled to ``rate`` hertz.

    Raises SourceError if the clip cannot be read, has no samples, contains values that are not finite, or has channels
    that cancel each other. Also raises SourceError for a clip of zeros, unless ``may_be_silent`` is true.
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
        raise unreadable(clip.path, clip.where, error) from error
    mono: Samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(1, dtype=np.float32)
    if own != rate and len(mono):
        mono = require_package("soxr").resample(mono, own, rate)
    if len(samples) < promised - TOLERANCE_S * own:
        raise unusable(clip, f"is truncated: it ends after {len(samples) / own:g} s of {promised / own:g} s")
    if not len(mono):
        raise unusable(clip, "has no samples")
    if not np.isfinite(mono).all():
        raise unusable(clip, "contains samples that are NaN or infinite")
    if samples.shape[1] > 1 and _cancel(samples):
        raise unusable(
            clip,
            "has channels that cancel each other: their mean, which the model gets, is silent",
            hint="Make one channel of it (`sox in.wav out.wav remix 1` keeps the first)",
        )
    if not may_be_silent and not mono.any():
        raise unusable(clip, "is silent: all of its samples are 0")
    return mono


def _cancel(samples: Samples) -> bool:
    """Return whether the mean of the channels of ``samples`` (samples, channels) is much quieter than the channels."""
    import numpy as np

    heard, mixed = (float(np.square(one, dtype=np.float64).mean()) for one in (samples, samples.mean(1)))
    return mixed < CANCELLED * heard


def unreadable(path: str, where: str, error: Exception) -> SourceError:
    """Return the error to raise for a sound or an array that cannot be read; ``where`` is the line that lists it."""
    why = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    use = "Use a sound file (WAV, FLAC or Ogg)" + (" or an array (.npy)." if _is_listed(path, where) else ".")
    hint = "" if getattr(error, "strerror", None) else use
    return SourceError(f"{_named(path, where)} cannot be read: {escape(str(why)).rstrip('.')}.", hint=hint)


def unusable(clip: Clip, why: str, *, hint: str = "") -> SourceError:
    """Return the error to raise for a clip that a model cannot use; ``why`` follows the path of the clip.

    The hint is to leave the clip out, or to do what ``hint`` says.
    """
    begin = f" from {clip.begin_s:g} s on" if clip.begin_s else ""
    hint = f"{hint}, or {_leave_out(clip)}" if hint else _leave_out(clip)
    return SourceError(f"{_named(clip.path, clip.where)}{begin} {why}.", hint=f"{hint[0].upper()}{hint[1:]}.")


def _is_listed(path: str, where: str) -> bool:
    """Return whether a manifest or a dataset lists the sound ``path``; else the user or ``train.augment`` names it."""
    return where not in (path, NOISE)


def _named(path: str, where: str) -> str:
    """Return the beginning of a message about a sound: the line that lists it, if there is one, and its path."""
    return escape(path) if where == path else f"{where}: {escape(path)}"


def _leave_out(clip: Clip) -> str:
    """Return advice for a clip that cannot be used."""
    if not _is_listed(clip.path, clip.where):
        return "leave this file out"
    return "remove the clip from the manifest" if clip.cell is None else "remove this row from the dataset"
