"""Changes clips of ``train`` at random: speed, added noise, and masks over their features.

The random numbers come from torch's default generator, which the loader seeds from (seed, epoch, clip): a run that is
resumed, or has other workers, sees the same clips.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.imports import require_package
from ..config.settings import Augment, Features

__all__ = ["Augmenter"]


class Augmenter:
    """The changes that settings ask for; ``changes_waves`` is whether features have to be computed anew each time."""

    def __init__(self, settings: Augment, features: Features) -> None:
        self._settings, self._features = settings, features
        self.changes_waves = bool(settings.speed or settings.snr_db)

    def wave(self, wave: Tensor) -> Tensor:
        """Return a wave (samples,) that is played at one of the speeds, with noise.

        Speed changes the pitch, too (https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html). The noise
        is normal, with a signal-to-noise ratio from ``snr_db``, evenly drawn.
        """
        speeds, ratios = self._settings.speed, self._settings.snr_db
        if speeds:
            speed = speeds[int(torch.randint(len(speeds), ()))]
            if speed != 1:
                rate = self._features.rate
                played = require_package("soxr").resample(wave.numpy(), rate * speed, rate)
                wave = torch.from_numpy(played) if len(played) else wave
        if ratios:
            ratio = ratios[0] + (ratios[-1] - ratios[0]) * float(torch.rand(()))
            noise = torch.randn_like(wave)
            wave = wave + noise * wave.square().mean().sqrt() * 10 ** (-ratio / 20)
        return wave

    def masked(self, found: Tensor) -> Tensor:
        """Return features (frames, width), or a wave (samples,), with masks, in which every value is their mean.

        SpecAugment without warping of time: https://arxiv.org/abs/1904.08779, section 2.
        """
        settings, features = self._settings, self._features
        of_waves = features.kind == "waves"
        found, mean = found.clone(), found.mean()
        step = round(features.step_s * features.rate) if of_waves else 1
        stack = 1 if of_waves else features.stack
        for _ in range(settings.time_masks):
            most = min(settings.time_width * step // stack, int(len(found) * settings.time_share))
            begin, end = _span(len(found), most)
            found[begin:end] = mean
        for _ in range(settings.freq_masks if not of_waves else 0):
            bands = found.view(len(found), stack, -1)
            begin, end = _span(bands.shape[-1], settings.freq_width)
            bands[:, :, begin:end] = mean
        return found


def _span(size: int, most: int) -> tuple[int, int]:
    """Return begin and end of a span of 0 to ``most`` places, evenly drawn, and at an evenly drawn place."""
    width = int(torch.randint(min(most, size) + 1, ()))
    begin = int(torch.randint(size - width + 1, ()))
    return begin, begin + width
