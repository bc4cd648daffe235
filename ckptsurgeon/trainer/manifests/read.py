"""Finds out what kind of list a manifest is, reads it, and looks at the sounds that it names."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, cast

from ...errors import CheckpointError, ConfigError, SourceError
from ...registry import discover
from ...text import escape
from ..data.clip import Clip
from ..data.sound import is_array, sound_seconds

__all__ = ["Manifest", "read_manifests"]

AT_ONCE = 8
"""Headers read at the same time: over a network each is waited for."""
TOLERANCE_S = 0.1
"""How far what a manifest says of a sound's length may be from what the sound says."""


class Manifest(Protocol):
    """A kind of list. One module of this folder each, as ``MANIFEST``."""

    kind: str
    """What it is called where people are told which kinds there are."""

    def sniff(self, path: str) -> bool:
        """Whether a file or folder is of this kind."""
        ...

    def read(self, path: str) -> list[Clip]:
        """Return its clips; ``seconds`` is not a number where the manifest says nothing of it.

        Raises ConfigError that names the file and the line.
        """
        ...


def read_manifests(paths: Sequence[str]) -> list[Clip]:
    """Return the clips of some manifests, in their order, with their lengths.

    Raises ConfigError where a manifest is none, is malformed, or a clip stands twice, and SourceError where a sound
    is missing or cannot be read.
    """
    clips = [clip for path in paths for clip in _read(path)]
    _check_twice(clips)
    _check_there(clips)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [clip if isinstance(clip, Clip) else _raise(clip) for clip in pool.map(_measured, clips)]


def _read(path: str) -> list[Clip]:
    if not os.path.exists(path):
        raise ConfigError(
            f"the manifest {escape(path)} does not exist.", hint="Paths are relative to the configuration."
        )
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise ConfigError(f"the manifest {escape(path)} is no regular file.")
    kinds = cast("dict[str, Manifest]", discover("ckptsurgeon.trainer.manifests", "MANIFEST"))
    found = next((kind for kind in kinds.values() if kind.sniff(path)), None)
    if found is None:
        named = "; ".join(kind.kind for kind in kinds.values())
        raise ConfigError(f"{escape(path)} is no manifest that is known here.", hint=f"Known are: {named}.")
    clips = found.read(path)
    if not clips:
        raise ConfigError(f"{escape(path)} names no clip.")
    return clips


def _check_twice(clips: Sequence[Clip]) -> None:
    seen: dict[tuple[str, float], Clip] = {}
    for clip in clips:
        first = seen.setdefault((clip.path, clip.begin_s), clip)
        if first is not clip:
            raise ConfigError(
                f"{clip.where}: the clip {escape(clip.path)} stands in {first.where} too.", hint="Remove one."
            )


def _check_there(clips: Sequence[Clip]) -> None:
    """Raise SourceError where sounds are missing; all of them are its details."""
    missing = [clip for clip in clips if not os.path.isfile(clip.path)]
    if missing:
        first = missing[0]
        more = f", and {len(missing) - 1} of {len(clips)} more do not" if len(missing) > 1 else ""
        raise SourceError(
            f"{first.where}: the sound {escape(first.path)} does not exist{more}.",
            hint="Relative paths begin at the manifest's folder.",
            details=[f"{clip.where}: {escape(clip.path)}" for clip in missing],
        )


def _measured(clip: Clip) -> Clip | CheckpointError:
    """Return a clip with its length, or what is wrong with it: in a thread, where raising would wait for the others."""
    try:
        return _with_length(clip)
    except CheckpointError as error:
        return error


def _with_length(clip: Clip) -> Clip:
    if is_array(clip.path):
        return dataclasses.replace(clip, seconds=0.0)
    whole = sound_seconds(clip.path, clip.where)
    end_s = whole if math.isnan(clip.seconds) else clip.begin_s + clip.seconds
    if end_s > whole + TOLERANCE_S or clip.begin_s > whole:
        until = f"from {clip.begin_s:g} s to {end_s:g} s" if end_s > clip.begin_s else f"from {clip.begin_s:g} s on"
        raise ConfigError(f"{clip.where}: it goes {until}, and {escape(clip.path)} lasts {whole:g} s.")
    if min(end_s, whole) <= clip.begin_s:
        raise SourceError(f"{clip.where}: {escape(clip.path)} has no samples.", hint="Remove it from the manifest.")
    return dataclasses.replace(clip, seconds=min(end_s, whole) - clip.begin_s)


def _raise(error: CheckpointError) -> Clip:
    raise error
