"""Reads the clips of a split from its manifests, checks their sounds, and counts the clips that are left out.

The format of each manifest is recognised; each format is a module of the folder ``manifests``.
"""

from __future__ import annotations

import glob
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, cast

from ...errors import CheckpointError, ConfigError, SourceError
from ...util.did_you_mean import did_you_mean
from ...util.registry import discover
from ...util.text import count, escape
from ..config.joined_errors import joined
from ..config.settings import DATASET, Data, Named
from ..manifests import hugging_face
from ..manifests._text import Marks, first_line, has_marks, names_in
from .sound import ARRAY, TOLERANCE_S, Clip, sound_seconds

__all__ = ["Manifest", "Split", "errors_as_one", "read_manifests", "read_split"]

TOO_SHORT = "with fewer frames than tokens"
"""The reason why clips that CTC cannot align are left out; https://www.cs.toronto.edu/~graves/icml_2006.pdf."""


@dataclass(frozen=True)
class Split:
    """A split of the data: the clips that are used, and how many clips were left out (``dropped``) for each reason.

    ``made_by`` is the name of the user's function that made the clips; it is '' for clips of a manifest.
    """

    name: str
    clips: tuple[Clip, ...]
    dropped: Mapping[str, int]
    made_by: str = ""
    longest_s: float = math.inf
    """The maximum length in seconds of the part of a clip that is used at a time."""

    @property
    def seconds(self) -> float:
        """The length of all clips together, in seconds."""
        return sum(clip.seconds for clip in self.clips)

    @property
    def lengths(self) -> tuple[float, ...]:
        """The length of each clip in seconds, but at most ``longest_s``; a batch has clips of similar length."""
        return tuple(min(clip.seconds, self.longest_s) for clip in self.clips)

    def cropped(self, seconds: float | None) -> Split:
        """Return the split with ``longest_s`` set to ``seconds``: at most this part of a clip is used at a time.

        If ``seconds`` is None, the split itself is returned.
        """
        return self if seconds is None else replace(self, longest_s=seconds)

    def says(self) -> str:
        """Return a line about the split: how many clips and minutes it has, and how many were left out."""
        if self.made_by:
            return f"{self.name}: {count(len(self.clips), 'example')} from {escape(self.made_by)}, your own code"
        left_out = ", ".join(f"{number} {why}" for why, number in self.dropped.items())
        there = f"{self.name}: {count(len(self.clips), 'clip')}, {self.seconds / 60:.1f} min"
        return f"{there}; left out: {left_out}" if left_out else there


def read_split(
    name: str,
    data: Data,
    *,
    check: Callable[[Sequence[Clip]], None],
    fits: Callable[[Clip], bool],
    texts: bool = True,
) -> Split:
    """Return the clips of the split ``name``, without clips that are shorter or longer than the settings allow.

    Clips that are too short for their text are also left out: ``fits`` returns whether a clip is long enough.
    ``check`` raises ConfigError for texts that the task cannot use. If ``texts`` is false, the manifests need no
    transcripts. Raises ConfigError if a manifest is invalid or no clip is left, and SourceError for a missing sound.
    """
    named = {"train": data.train, "dev": data.dev, "test": data.test}[name]
    read = [one for one in named if isinstance(one, str) or DATASET in one]
    if not read or len(read) < len(named):
        why = "refers to a function (_target_), but this task reads manifests" if named else "lists no manifest"
        raise ConfigError(f"train.data.{name} {why}.", hint=f"List one or more manifests, as in {name}: {name}.csv.")
    faults = list[CheckpointError]()
    clips = read_manifests(read, faults, texts=texts)
    try:
        check(clips)
    except CheckpointError as error:
        faults.append(error)
    if faults:
        raise joined(faults)
    reasons = [_reason(clip, data, fits) for clip in clips]
    kept = tuple(clip for clip, why in zip(clips, reasons, strict=True) if not why)
    dropped = dict(Counter(filter(None, reasons)))
    split = Split(name, kept, dropped)
    if not kept:
        raise ConfigError(f"no clip is left in {split.says()}.", hint=_hint(dropped))
    return split


def _hint(dropped: Mapping[str, int]) -> str:
    """Return a hint for a split without clips; ``dropped`` maps each reason why clips were left out to their number."""
    if max(dropped, key=dropped.__getitem__, default="") == TOO_SHORT:
        return (
            "CTC needs a frame for each token: do texts and sounds match? Unless features are waves, a smaller "
            "features.stack makes more frames."
        )
    return "Change train.data.min_s or train.data.max_s, the shortest and the longest clip that is used."


def _reason(clip: Clip, data: Data, fits: Callable[[Clip], bool]) -> str:
    if clip.seconds < data.min_s:
        return f"shorter than {data.min_s:g} s"
    if clip.seconds > data.max_s:
        return f"longer than {data.max_s:g} s"
    return "" if fits(clip) else TOO_SHORT


_RELATIVE = "Relative paths begin at the folder of the configuration."
RELATIVE_TO_MANIFEST = "Relative paths begin at the manifest's folder."
EMPTY, MISSING, A_FOLDER = "is an empty file", "does not exist", "is a folder"
AT_ONCE = 8
"""The number of sound files whose headers are read at the same time: on a network drive, each read has to wait."""


class Manifest(Protocol):
    """A format of manifests; each module of the folder ``manifests`` defines one as ``MANIFEST``."""

    kind: str
    """The name of the format in messages."""

    @property
    def marks(self) -> tuple[Marks, ...]:
        """The marks of the format; a manifest has the marks of one entry."""
        ...

    def read(self, path: str, *, texts: bool = True) -> list[Clip]:
        """Return the clips of a manifest; a clip's ``seconds`` are NaN if the manifest does not contain its length.

        If ``texts`` is false, no transcripts are read, and each clip's text is ''; but a class, which is the text in a
        CSV for classification, is always read. Raises ConfigError if the manifest is malformed; the message gives the
        file, and the line or the name of the entry.
        """
        ...


def read_manifests(
    named: Sequence[Named], faults: list[CheckpointError] | None = None, *, texts: bool = True
) -> list[Clip]:
    """Return the clips of the manifests and datasets ``named``, in order, with their lengths in seconds.

    If ``texts`` is false, manifests and datasets need no transcripts. Errors in sound files are added to ``faults``. If
    ``faults`` is None, they are raised as SourceError or ConfigError. Raises ConfigError if a manifest has no known
    format or is malformed, or if a clip occurs twice.
    """
    own = list[CheckpointError]() if faults is None else faults
    clips = [clip for one in named for clip in _clips(one, texts=texts)]
    _check_twice(clips)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(_measured, clips))
    if (absent := _absent_sounds(clips)) is not None:
        own.append(absent)
    wrong = [one for one in found if isinstance(one, CheckpointError)]
    if wrong:
        own.append(errors_as_one(wrong, len(clips)))
    if own and faults is None:
        raise joined(own)
    return [one if isinstance(one, Clip) else clip for one, clip in zip(found, clips, strict=True)]


def errors_as_one(wrong: Sequence[CheckpointError], of: int) -> CheckpointError:
    """Return one error that combines ``wrong``, the errors of several sounds; ``of`` is the number of all sounds."""
    first = wrong[0]
    if len(wrong) == 1:
        return first
    more = f" {len(wrong) - 1} more of the {of} sounds {'has an error' if len(wrong) == 2 else 'have errors'}, too."
    return type(first)(first.message + more, hint=first.hint, details=[error.message for error in wrong])


def _clips(named: Named, *, texts: bool) -> list[Clip]:
    return _read(named, texts=texts) if isinstance(named, str) else hugging_face.read_dataset(named, texts=texts)


def _read(path: str, *, texts: bool) -> list[Clip]:
    if not os.path.exists(path):
        several = "," in path or glob.has_magic(path)
        hint = "Write several manifests as a list: [a.csv, b.csv]. Wildcards do not work." if several else _RELATIVE
        raise ConfigError(f"the manifest {escape(path)} does not exist.", hint=did_you_mean(path, hint))
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise ConfigError(f"the manifest {escape(path)} is not a regular file.")
    if os.path.isfile(path) and not os.path.getsize(path):
        raise ConfigError(f"the manifest {escape(path)} is empty.", hint=f"Known formats: {_known()}.")
    kinds = cast("dict[str, Manifest]", discover("ckptsurgeon.trainer.manifests", "MANIFEST"))
    names = names_in(path)
    found = next((kind for kind in kinds.values() if any(has_marks(path, names, one) for one in kind.marks)), None)
    if found is None:
        raise ConfigError(f"{escape(path)} is not a manifest in a known format{_seen(path)}.", hint=_known_hint(path))
    clips = found.read(path, texts=texts)
    if not clips:
        raise ConfigError(
            f"the manifest {escape(path)} contains no clips.",
            hint="Add lines with clips, or remove the manifest from the configuration.",
        )
    return clips


def _known() -> str:
    kinds = cast("dict[str, Manifest]", discover("ckptsurgeon.trainer.manifests", "MANIFEST"))
    return "; ".join(kind.kind for kind in kinds.values())


def _seen(path: str) -> str:
    """Return the end of the message on a manifest of unknown format: its first line, or a remark if it is a folder."""
    line = first_line(path)
    if line:
        return f": its first line is {escape(line, 80)!r}"
    return ": it is a folder without wav.scp and text" if os.path.isdir(path) else ": its first line is empty"


def _known_hint(path: str) -> str:
    line = first_line(path)
    apart = next((name for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")) if mark in line), "")
    if apart and path.lower().endswith(".csv") and "," not in line:
        return f"Its columns are separated by {apart}, not by commas. Known formats: {_known()}."
    return f"Known formats: {_known()}."


def _check_twice(clips: Sequence[Clip]) -> None:
    seen: dict[tuple[object, ...], Clip] = {}
    for clip in clips:
        first = seen.setdefault((clip.path, clip.begin_s, clip.cell), clip)
        if first is not clip:
            raise ConfigError(
                f"{clip.where}: the clip {escape(clip.path)} is also in {first.where}.", hint="Remove one of the two."
            )


def _absent_sounds(clips: Sequence[Clip]) -> SourceError | None:
    """Return an error whose details list the clips without a file that can be used; None if there are no such clips."""
    missing = [(clip, _absence(clip.path)) for clip in clips if not _is_sound(clip.path)]
    if not missing:
        return None
    (first, why), *rest = missing
    more = f"; {len(missing)} of {len(clips)} sounds cannot be used" if rest else ""
    hints = {MISSING: RELATIVE_TO_MANIFEST, A_FOLDER: RELATIVE_TO_MANIFEST}
    return SourceError(
        f"{first.where}: the sound {escape(first.path)} {why}{more}.",
        hint=hints.get(why, "Copy the file again, or remove the clip from the manifest."),
        details=[f"{clip.where}: {escape(clip.path)} {said}" for clip, said in missing],
    )


def _is_sound(path: str) -> bool:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def _absence(path: str) -> str:
    if os.path.isdir(path):
        return A_FOLDER
    try:
        return EMPTY if stat.S_ISREG(os.stat(path).st_mode) else "is not a regular file"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the path
        return MISSING
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _measured(clip: Clip) -> Clip | CheckpointError:
    """Return a clip with its length, or the error in its sound file.

    The error is returned, not raised, so that the other sounds are checked, too. If the sound file is missing or empty,
    the clip is returned unchanged.
    """
    if not _is_sound(clip.path):
        return clip
    try:
        return _with_length(clip)
    except CheckpointError as error:
        return error


def _with_length(clip: Clip) -> Clip:
    if clip.path.endswith(ARRAY):
        return replace(clip, seconds=0.0)
    whole = sound_seconds(clip)
    end_s = whole if math.isnan(clip.seconds) else clip.begin_s + clip.seconds
    if end_s > whole + TOLERANCE_S or clip.begin_s > whole:
        until = f"from {clip.begin_s:g} s to {end_s:g} s" if end_s > clip.begin_s else f"from {clip.begin_s:g} s on"
        raise ConfigError(
            f"{clip.where}: the clip goes {until}, but {escape(clip.path)} is only {whole:g} s long.",
            hint="Correct the begin and end of the clip, or remove it from the manifest.",
        )
    if min(end_s, whole) <= clip.begin_s:
        what = (
            f"{escape(clip.path)} has no samples"
            if not whole
            else f"the clip of {escape(clip.path)} has a length of 0 s"
        )
        raise SourceError(f"{clip.where}: {what}.", hint="Remove the clip from the manifest.")
    return replace(clip, seconds=min(end_s, whole) - clip.begin_s)
