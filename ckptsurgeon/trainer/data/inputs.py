"""Makes the input of a model from a clip: the features of a sound, perhaps from a cache, or an array unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...storage.small_files import open_file
from ..config.settings import Augment, Features, Settings
from ..models._layers import mel_filters
from ..system.signals import start_loader, worker_options
from .augment import Augmenter
from .cache import FeatureCache
from .sound import ARRAY, Clip, read_sound, unreadable, unusable

__all__ = ["ClipInputs", "FeatureExtractor"]

# Features of a sound: log-mel energies, cepstra or the wave itself.

MEL_FLOOR = 1e-10
CEPSTRAL_BANDS, CEPSTRAL_LOWEST_HZ, CEPSTRAL_FLOOR = 40, 20.0, 1e-12
"""The constants of TensorFlow's MFCC, which Coqui STT uses."""


class FeatureExtractor:
    """Computes features of waves by the settings: (samples,) → (frames, width), or (samples,) for ``waves``.

    ``log_mel``: logarithms of the power under triangular filters on the HTK mel scale, as in the front end of the
    bundled models. Windows are centred on the steps, so the first and last windows reach beyond the sound.

    ``mfcc``: as in Coqui STT (tensorflow/core/kernels/mfcc*.cc, after the HTK book, 5.4 and 5.6). The 40 filters begin
    at 20 Hz, and are applied to magnitudes, not powers. Windows that reach beyond the sound are left out. The cosine
    transform is not orthonormal.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.window = round(features.window_s * features.rate)
        self.step = round(features.step_s * features.rate)
        if features.kind != "waves":
            self._check()
            self._hann = torch.hann_window(self.window)
            self._n_fft = 1 << (self.window - 1).bit_length()

    def _check(self) -> None:
        features = self.features
        if self.window < 2 or self.step < 1:
            raise ConfigError(
                f"train.features: window_s and step_s give windows of {self.window} samples that begin every "
                f"{self.step} samples.",
                hint="Write a larger window_s (2 samples or more) or step_s (1 or more); there are "
                f"{features.rate} samples in a second.",
            )
        if features.kind == "mfcc" and features.size > CEPSTRAL_BANDS:
            raise ConfigError(
                f"train.features.size is {features.size}: mfcc has at most {CEPSTRAL_BANDS} features.",
                hint=f"Write `size: {CEPSTRAL_BANDS}` or less, or `kind: log_mel`.",
            )

    @cached_property
    def _filters(self) -> Tensor:
        if self.features.kind == "mfcc":
            return _htk_filters(CEPSTRAL_BANDS, self._n_fft, self.features.rate)
        return mel_filters(self.features.size, self._n_fft, self.features.rate)

    @cached_property
    def _cosines(self) -> Tensor:
        return _cosines(CEPSTRAL_BANDS, self.features.size)

    @property
    def width(self) -> int:
        """The number of features in a frame; 1 for waves."""
        return 1 if self.features.kind == "waves" else self.features.size * self.features.stack

    def frames(self, seconds: float) -> int:
        """Return the number of frames of a sound of ``seconds`` seconds; for waves, the number of samples."""
        samples = round(seconds * self.features.rate)
        if self.features.kind == "waves":
            return samples
        if self.features.kind == "log_mel":
            frames = samples // self.step + 1
        else:
            frames = max(samples - self.window, 0) // self.step + 1
        return -(-frames // self.features.stack)

    @torch.no_grad()
    def __call__(self, wave: Tensor) -> Tensor:
        """Return the features (frames, width) of a wave (samples,); if the features are ``waves``, return the wave.

        If the setting ``centred`` is true, the mean is subtracted.
        """
        kind = self.features.kind
        found = wave if kind == "waves" else self._log_mel(wave) if kind == "log_mel" else self._mfcc(wave)
        if self.features.centred:
            found = found - found.mean(0, keepdim=True)
        return found if kind == "waves" else self._stacked(found)

    def _log_mel(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave, self._n_fft, self.step, self.window, self._hann,
            center=True, pad_mode="constant", return_complex=True,
        )  # fmt: skip
        power = spectrum.abs().square().T
        energies: Tensor = power @ self._filters
        return energies.clamp(min=MEL_FLOOR).log()

    def _mfcc(self, wave: Tensor) -> Tensor:
        if len(wave) < self.window:
            wave = torch.nn.functional.pad(wave, (0, self.window - len(wave)))
        windows = wave.unfold(0, self.window, self.step) * self._hann
        magnitudes = torch.fft.rfft(windows, self._n_fft).abs()
        bands: Tensor = magnitudes @ self._filters
        return bands.clamp(min=CEPSTRAL_FLOOR).log() @ self._cosines

    def _stacked(self, frames: Tensor) -> Tensor:
        """Stack frames, (frames, size) → (frames / stack, size * stack); the last frame is repeated as padding."""
        stack = self.features.stack
        short = -len(frames) % stack
        if short:
            frames = torch.cat([frames, frames[-1:].expand(short, -1)])
        return frames.reshape(len(frames) // stack, -1)


def _htk_filters(bands: int, n_fft: int, rate: int) -> Tensor:
    """Return filters (n_fft // 2 + 1, bands) that are triangular on the mel scale, not in hertz, and 0 up to 20 Hz."""
    hertz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
    mel = 1127.0 * torch.log1p(hertz / 700.0)
    lowest = 1127.0 * math.log1p(CEPSTRAL_LOWEST_HZ / 700.0)
    edges = torch.linspace(lowest, 1127.0 * math.log1p(rate / 2 / 700.0), bands + 2, dtype=torch.float64)
    width = edges[1] - edges[0]
    triangles = (1 - (mel[:, None] - edges[None, 1:-1]).abs() / width).clamp(min=0)
    triangles[: int(1.5 + CEPSTRAL_LOWEST_HZ * n_fft / rate)] = 0
    return triangles.float()


def _cosines(bands: int, size: int) -> Tensor:
    """Return the cosine transform (bands, size) of the HTK book, equation 5.14."""
    place = (torch.arange(bands, dtype=torch.float64) + 0.5) * math.pi / bands
    cosines = math.sqrt(2.0 / bands) * torch.cos(place[:, None] * torch.arange(size, dtype=torch.float64))
    return cosines.float()


class ClipInputs:
    """Makes the inputs of a model by the settings: a call with a clip returns a tensor (time, …)."""

    def __init__(self, settings: Settings) -> None:
        self.extractor = FeatureExtractor(settings.features)
        self._workers = settings.data.workers or 0
        folder = settings.data.cache
        self._augmenter = Augmenter(settings.augment, settings.features) if settings.augment != Augment() else None
        self._cache = FeatureCache(folder, settings.features, self.extractor.width, self._compute) if folder else None

    def __call__(self, clip: Clip) -> Tensor:
        """Return a clip's input, from the cache if it is there; raises SourceError for a sound that cannot be used."""
        if clip.path.endswith(ARRAY):
            return torch.from_numpy(_read_array(clip))
        found, augmenter = None, self._augmenter if clip.augmented else None
        if self._cache is not None and not (augmenter is not None and augmenter.changes_waves):
            found = self._cache.get(clip)
        if found is None:
            found = self._compute(clip)
        elif self.extractor.features.kind == "waves":
            found = found[:, 0]
        return augmenter.masked(found) if augmenter is not None else found

    def frames(self, clip: Clip) -> float:
        """Return the number of frames of a clip's input, without opening its file; infinity if the number is unknown.

        For waves it is unknown: the model decides how many frames it makes from the samples.
        """
        unknown = clip.path.endswith(ARRAY) or self.extractor.features.kind == "waves"
        return math.inf if unknown else self.extractor.frames(clip.seconds)

    def prepare(self, clips: Sequence[Clip], progress: Callable[[int, int], None] | None = None) -> int:
        """Fill the cache with the features of ``clips``, and return the number of clips whose features were computed.

        Later calls for these clips only read a memory-mapped file. Without a cache nothing is done. ``progress`` is
        called with the number of clips that are done and the number of all clips. If ``data.workers`` is above 0,
        that many processes compute features.
        """
        if self._cache is None:
            return 0
        clips = [clip for clip in clips if not clip.path.endswith(ARRAY)]
        pieces = self._cache.pieces(clips)
        done = computed = 0
        if progress is not None:
            progress(0, len(clips))
        for piece, made in zip(pieces, _filled(self._cache, pieces, self._workers), strict=True):
            if isinstance(made, CheckpointError):
                try:
                    raise made
                finally:
                    # The error refers to this frame, and the variable to the error. This reference cycle would keep
                    # worker processes alive for seconds.
                    del made
            self._cache.open(piece)
            done, computed = done + len(piece), computed + (len(piece) if made else 0)
            if progress is not None:
                progress(done, len(clips))
        return computed

    def _compute(self, clip: Clip) -> Tensor:
        wave = torch.from_numpy(read_sound(clip, self.extractor.features.rate))
        if clip.augmented and self._augmenter is not None:
            wave = self._augmenter.wave(wave)
        return self.extractor(wave)


def _read_array(clip: Clip) -> Any:
    """Return the array in a clip's ``.npy`` file as float32 or int64; nothing in the file is unpickled.

    Raises SourceError if the file cannot be read, has no numbers, or has values that are not finite in float32.
    """
    import numpy as np

    try:
        with open_file(clip.path) as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile) as error:
        raise unreadable(clip.path, clip.where, error) from error
    if not isinstance(array, np.ndarray) or array.size == 0:
        raise unusable(clip, "contains no numbers" if isinstance(array, np.ndarray) else "is an archive, not an array")
    if array.dtype.kind not in "biuf":
        raise unusable(clip, f"contains values of the type {array.dtype}, not real numbers")
    if array.dtype.kind != "f":
        return array.astype(np.int64)
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise unusable(clip, "contains values that are NaN or infinite in float32")
    return found


class _CacheGroups(torch.utils.data.Dataset[Any]):
    """A dataset with an item for each group of clips: getting the item writes the group's file in the cache.

    The item is true if the file was written, false if it existed, or an error for the parent process to raise.
    """

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
            generator=private,
            **worker_options(min(workers, len(pieces) or 1)),
        )
    )
