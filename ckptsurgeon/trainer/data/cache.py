"""A cache of features in memory-mapped files; a file is written completely or not at all.

A file holds some hundreds of clips that follow each other in a manifest. Its name is a digest of the feature settings
and of each clip's path, size and modification time: if a clip changes, only the file with this clip is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import OutputError, SourceError
from ...storage.small_files import open_file
from ...storage.write.staged_file import staged_file
from ...util.text import escape
from ..config.settings import Features
from .arrow import Cell
from .sound import Clip

__all__ = ["FeatureCache", "Place"]

_log = logging.getLogger(__name__)
MAGIC = b"ckptfeat"
VERSION = 2
"""Version of the layout and of the computation of features; files of another version are not used."""
MOST_CLIPS, MOST_S = 256, 600.0
"""The maximum number of clips, and of seconds of sound, in a file: so it is computed fast, and fits into memory."""

Place = tuple[str, float, float, Cell | None]
"""Identifies the sound of a clip: path, begin and length in seconds, and the table cell (None: not in a table)."""


def place_of(clip: Clip) -> Place:
    """Return a tuple that identifies the sound of a clip in the cache: its file and its position in the file."""
    return clip.path, clip.begin_s, clip.seconds, clip.cell


class FeatureCache:
    """A folder of cached features. ``compute`` is a function that returns the features (frames, width) of a clip."""

    def __init__(self, folder: str, features: Features, width: int, compute: Callable[[Clip], Tensor]) -> None:
        self._folder, self._features, self._width, self._compute = folder, features, width, compute
        self._found: dict[Place, _CachedClip] = {}

    def pieces(self, clips: Sequence[Clip]) -> list[Sequence[Clip]]:
        """Divide ``clips`` into groups of successive clips; the cache has one file for the features of each group."""
        made: list[list[Clip]] = [[]]
        seconds = 0.0
        for clip in clips:
            if made[-1] and (len(made[-1]) == MOST_CLIPS or seconds + clip.seconds > MOST_S):
                made.append([])
                seconds = 0.0
            made[-1].append(clip)
            seconds += clip.seconds
        return [piece for piece in made if piece]

    def fill(self, clips: Sequence[Clip]) -> bool:
        """Compute the features of a group of clips and write its file, unless the file exists.

        Returns whether the file was written. Raises SourceError for a sound that cannot be used, and OutputError if the
        folder cannot be written.
        """
        path = self._path(clips)
        if _mapped(path, len(clips), self._width) is not None:
            return False
        computed = [self._compute(clip).reshape(-1, self._width) for clip in clips]
        try:
            os.makedirs(self._folder, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {escape(self._folder)}: {error.strerror}.") from error
        ends = np.cumsum([len(one) for one in computed], dtype=np.int64)
        data = [one.numpy().astype("<f4", copy=False).tobytes() for one in computed]
        index = [len(clips), self._width, *ends.tolist(), *(zlib.crc32(one) for one in data)]
        head = MAGIC + np.array(index, dtype="<i8").tobytes()
        with staged_file(path, len(head) + sum(map(len, data)), force=True) as staged:
            staged.write(0, head)
            staged.write(len(head), b"".join(data))
        return True

    def open(self, clips: Sequence[Clip]) -> None:
        """Memory-map the file of a group of clips, so that ``get`` returns their features.

        ``fill`` must have written the file before. Raises SourceError if it is missing or truncated.
        """
        path = self._path(clips)
        mapped = _mapped(path, len(clips), self._width)
        if mapped is None:
            raise SourceError(
                f"the cached features {escape(path)} are missing or truncated.",
                hint="Run ckpt train again: it computes the features again.",
            )
        ends, sums, frames = mapped
        begins = [0, *ends[:-1]]
        for clip, begin, end, crc in zip(clips, begins, ends, sums, strict=True):
            self._found[place_of(clip)] = _CachedClip(path, frames, begin, end, crc)

    def get(self, clip: Clip) -> Tensor | None:
        """Return the features (frames, width) of a clip; None if no opened file has them.

        If the features are damaged, this is logged, None is returned, and the file is removed: the next run writes it
        again.
        """
        found = self._found.get(place_of(clip))
        if found is None:
            return None
        frames = np.array(found.frames[found.begin : found.end], dtype="<f4")
        if zlib.crc32(frames.tobytes()) != found.crc:
            del self._found[place_of(clip)]
            with suppress(OSError):
                os.unlink(found.path)
            _log.warning("%s: its features in %s are damaged, and are computed again", clip.where, escape(found.path))
            return None
        return torch.from_numpy(frames.astype(np.float32, copy=False))

    def _path(self, clips: Sequence[Clip]) -> str:
        digest = hashlib.sha256(json.dumps([VERSION, asdict(self._features)]).encode())
        for line in self._lines(clips):
            digest.update(line.encode("utf-8", "surrogateescape"))
        return os.path.join(self._folder, f"{digest.hexdigest()[:32]}.features")

    def _lines(self, clips: Sequence[Clip]) -> Iterator[str]:
        for clip in clips:
            try:
                found = os.stat(clip.path)
            except OSError as error:
                raise SourceError(f"{clip.where}: {escape(clip.path)} cannot be read: {error.strerror}.") from error
            path = os.path.realpath(clip.path)
            cell = "" if clip.cell is None else f" {clip.cell.column} {clip.cell.row}"
            yield f"\n{path}\0{found.st_size} {found.st_mtime_ns} {clip.begin_s!r} {clip.seconds!r}{cell}"


class _CachedClip(NamedTuple):
    """The position of a clip's features: rows ``begin`` to ``end`` of ``frames``, which is the mapped file ``path``.

    ``frames`` (frames, width) has the features of all clips in the file, ``crc`` is the CRC-32 of this clip's rows.
    """

    path: str
    frames: np.ndarray[Any, Any]
    begin: int
    end: int
    crc: int


def _mapped(path: str, clips: int, width: int) -> tuple[list[int], list[int], np.ndarray[Any, Any]] | None:
    """Return the contents of a file of cached features: (list of clips' ends, list of clips' CRC-32, frames).

    The frames have the shape (frames, width). The end of a clip is the index after its last frame. The frames are
    memory-mapped. They do not change, because a file is never written in place. Returns None if the file does not
    exist, is damaged, or does not have ``clips`` clips with frames of ``width`` numbers.
    """
    try:
        with open_file(path) as file:
            head = file.read(len(MAGIC) + 16 + 16 * clips)
            size = os.fstat(file.fileno()).st_size
        numbers = np.frombuffer(head[len(MAGIC) :], "<i8").tolist()
        begins_right = head.startswith(MAGIC) and numbers[:2] == [clips, width]
        ends, sums = numbers[2 : 2 + clips], numbers[2 + clips :]
        if not begins_right or len(sums) != clips or size != len(head) + 4 * width * ends[-1]:
            return None
        return ends, sums, np.memmap(path, "<f4", "r", offset=len(head), shape=(ends[-1], width))
    except (OSError, ValueError):
        return None
