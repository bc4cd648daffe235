"""Features of a sound: log-mel energies, cepstra or the wave itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import ConfigError
from ..config.settings import Features
from ..models._layers import mel_filters

__all__ = ["FeatureExtractor"]

MEL_FLOOR = 1e-10
CEPSTRAL_BANDS, CEPSTRAL_LOWEST_HZ, CEPSTRAL_FLOOR = 40, 20.0, 1e-12
"""The constants of TensorFlow's MFCC, with which Coqui STT trains."""


class FeatureExtractor:
    """Turns waves into features by the settings: (samples,) → (frames, width), or (samples,) for waves.

    ``log_mel``: powers under triangles on the HTK mel scale, frames centred on every step, as in the front end of the
    bundled models. ``mfcc``: as Coqui STT computes it (tensorflow/core/kernels/mfcc*.cc, after the HTK book, 5.4 and
    5.6): magnitudes under 40 triangles from 20 Hz, complete windows only, cosines that are not orthonormal.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.window = round(features.window_s * features.rate)
        self.step = round(features.step_s * features.rate)
        if features.kind != "waves":
            self._check()
            self._hann = torch.hann_window(self.window)
            self._n_fft = 1 << (self.window - 1).bit_length()
        if features.kind == "log_mel":
            self._filters = mel_filters(features.size, self._n_fft, features.rate)
        if features.kind == "mfcc":
            self._filters = _htk_filters(CEPSTRAL_BANDS, self._n_fft, features.rate)
            self._cosines = _cosines(CEPSTRAL_BANDS, features.size)

    def _check(self) -> None:
        features = self.features
        if self.window < 2 or self.step < 1:
            raise ConfigError(f"train.features: a window of {self.window} samples every {self.step} is not possible.")
        if features.kind == "mfcc" and features.size > CEPSTRAL_BANDS:
            raise ConfigError(f"train.features.size is {features.size}: mfcc has {CEPSTRAL_BANDS} at most.")

    @property
    def width(self) -> int:
        """The numbers in each frame; 1 for waves."""
        return 1 if self.features.kind == "waves" else self.features.size * self.features.stack

    def frames(self, seconds: float) -> int:
        """Return the number of frames of a sound of this length; for waves, the number of samples."""
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
        """Return the features of one wave."""
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
    """Return triangles (n_fft // 2 + 1, bands) that are linear in mel, not in hertz; no triangle contains 0 Hz."""
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
