"""Reads the clips of a split from its manifests, and counts the clips that are left out, with the reasons."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CheckpointError, ConfigError
from ...util.text import count, escape
from ...vocabulary.vocabulary import BYTES
from ..config.joined_errors import joined
from ..config.settings import DATASET, Data, Named, Settings
from ..manifests.read import read_manifests
from .sound import Clip

__all__ = ["Split", "read_split", "resolve_paths"]

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


def resolve_paths(settings: Settings, folder: str) -> Settings:
    """Return settings with full paths: the paths in a configuration are relative to its ``folder``."""
    data, augment = settings.data, settings.augment

    def path(name: str) -> str:
        return os.path.normpath(os.path.join(folder, name))

    def paths(several: Sequence[Named]) -> tuple[Named, ...]:
        return tuple(path(one) if isinstance(one, str) else dataset(one) for one in several)

    def dataset(one: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**one, DATASET: path(str(one[DATASET]))} if DATASET in one else one

    tokens = data.tokens
    if tokens is not None and tokens != BYTES:
        tokens = path(tokens) if path(tokens) != BYTES else os.path.join(os.curdir, BYTES)
    data = replace(
        data,
        train=paths(data.train),
        dev=paths(data.dev),
        test=paths(data.test),
        tokens=tokens,
        segmenter=path(data.segmenter) if data.segmenter is not None else None,
        cache=path(data.cache) if data.cache is not None else None,
    )
    lm = path(settings.lm) if settings.lm is not None else None
    return replace(settings, data=data, lm=lm, augment=replace(augment, noise=tuple(map(path, augment.noise))))


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
