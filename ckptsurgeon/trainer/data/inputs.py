"""Makes a model's input for a clip: features of a sound, or an array as it is, from a cache if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from ..config.settings import Settings
from ..system.signals import ignore_stop_signals, start_loader
from .cache import FeatureCache
from .features import FeatureExtractor
from .sound import Clip, is_array, read_array, read_sound

__all__ = ["ClipInputs"]


class ClipInputs:
    """The inputs of clips by the settings: ``inputs(clip)`` is (time, …)."""

    def __init__(self, settings: Settings) -> None:
        self.extractor = FeatureExtractor(settings.features)
        self._workers = settings.data.workers
        folder = settings.data.cache
        self._cache = FeatureCache(folder, settings.features, self.extractor.width, self._compute) if folder else None

    def __call__(self, clip: Clip) -> Tensor:
        """Return a clip's input; raises SourceError for a sound that cannot be used."""
        if is_array(clip.path):
            return torch.from_numpy(read_array(clip))
        cached = self._cache.get(clip) if self._cache is not None else None
        if cached is None:
            return self._compute(clip)
        return cached[:, 0] if self.extractor.features.kind == "waves" else cached

    def frames(self, clip: Clip) -> float:
        """Return how many frames a clip's input has, without opening its file; infinity if this is unknown.

        For waves, this is unknown: how many frames a model makes of samples depends on the model.
        """
        unknown = is_array(clip.path) or self.extractor.features.kind == "waves"
        return math.inf if unknown else self.extractor.frames(clip.seconds)

    def prepare(self, clips: Sequence[Clip], progress: Callable[[int, int], None] | None = None) -> int:
        """Fill the cache with these clips, so that ``inputs(clip)`` only maps; returns how many had to be computed.

        Does nothing without a cache. ``progress`` gets the number of clips that are done, and of all clips. With
        ``data.workers``, so many processes compute groups of clips.
        """
        if self._cache is None:
            return 0
        clips = [clip for clip in clips if not is_array(clip.path)]
        pieces = self._cache.pieces(clips)
        done = computed = 0
        if progress is not None:
            progress(0, len(clips))
        for piece, made in zip(pieces, _filled(self._cache, pieces, self._workers), strict=True):
            if isinstance(made, CheckpointError):
                try:
                    raise made
                finally:
                    # An error in its own frame is a reference cycle, which keeps worker processes alive for seconds.
                    del made
            self._cache.open(piece)
            done, computed = done + len(piece), computed + (len(piece) if made else 0)
            if progress is not None:
                progress(done, len(clips))
        return computed

    def _compute(self, clip: Clip) -> Tensor:
        return self.extractor(torch.from_numpy(read_sound(clip, self.extractor.features.rate)))


class _CacheGroups(torch.utils.data.Dataset[Any]):
    """Groups of clips; getting an item writes a group's file. Errors are returned, and raised in the parent process."""

    def __init__(self, cache: FeatureCache, pieces: Sequence[Sequence[Clip]]) -> None:
        self._cache, self._pieces = cache, pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, place: int) -> bool | CheckpointError:
        try:
            return self._cache.fill(self._pieces[place])
        except CheckpointError as error:
            return error


def _filled(cache: FeatureCache, pieces: Sequence[Sequence[Clip]], workers: int) -> Iterator[bool | CheckpointError]:
    dataset = _CacheGroups(cache, pieces)
    if not workers:
        return (dataset[place] for place in range(len(pieces)))
    private = torch.Generator()  # the default generator is the global one, from which the training draws
    return start_loader(
        torch.utils.data.DataLoader(
            dataset,
            batch_size=None,
            num_workers=min(workers, len(pieces) or 1),
            generator=private,
            worker_init_fn=ignore_stop_signals,
        )
    )
