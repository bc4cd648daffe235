"""Changes clips of ``train`` at random: speed, added noise, and masks over their features.

The random numbers come from torch's default generator, which the loader seeds from (seed, epoch, clip): a run that is
resumed, or has another number of workers, sees the same clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import ConfigError
from ...util.text import escape
from ..config.imports import require_package
from ..config.settings import Augment, Features
from .sound import NOISE, SUFFIXES, Clip, read_sound, sound_seconds

__all__ = ["Augmenter"]


class Augmenter:
    """Changes clips at random, as the settings ``train.augment`` say.

    ``changes_waves`` is true if the sound itself is changed; features must then be computed each time, not cached.
    """

    def __init__(self, settings: Augment, features: Features) -> None:
        self._settings, self._features = settings, features
        self.changes_waves = bool(settings.speed or settings.snr_db)
        self._noises = [_measured(path) for path in _sounds(settings.noise)]

    def wave(self, wave: Tensor) -> Tensor:
        """Return a wave (samples,) with another speed and with added noise, if the settings ask for these changes.

        A change of speed also changes the pitch (https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html).
        The noise is a random part of one of the files in ``noise``, or white noise if there are no such files. The
        signal-to-noise ratio is drawn uniformly between the two numbers of ``snr_db``. Raises SourceError if a file of
        noise cannot be read.
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
            noise = self._noise(len(wave)) if self._noises else torch.randn_like(wave)
            power = noise.square().mean().sqrt().clamp_min(1e-8) if self._noises else 1.0
            wave = wave + noise * (wave.square().mean().sqrt() / power) * 10 ** (-ratio / 20)
        return wave

    def _noise(self, size: int) -> Tensor:
        """Return ``size`` samples of noise: a random part of a random file. A file that is too short is repeated."""
        rate = self._features.rate
        sound = self._noises[int(torch.randint(len(self._noises), ()))]
        most = min(size / rate, sound.seconds)
        begin_s = (sound.seconds - most) * float(torch.rand(()))
        heard = torch.from_numpy(read_sound(replace(sound, begin_s=begin_s, seconds=most), rate, may_be_silent=True))
        return heard.repeat(-(-size // len(heard)))[:size]

    def masked(self, found: Tensor) -> Tensor:
        """Return a copy of features (frames, width), or of a wave (samples,), with masked spans set to the mean.

        This is SpecAugment without time warping: https://arxiv.org/abs/1904.08779, section 2.
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


def _sounds(paths: Sequence[str]) -> Iterator[str]:
    """Yield the sound files in ``paths``, each a file or a folder; the files of a folder are sorted.

    Raises ConfigError if a path does not exist, or is a folder without a sound.
    """
    for path in paths:
        if os.path.isfile(path):
            yield path
            continue
        found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        sounds = sorted(one for one in found if one.lower().endswith(SUFFIXES))
        if not sounds:
            why = "contains no sound" if os.path.isdir(path) else "does not exist"
            raise ConfigError(
                f"{NOISE}: {escape(path)} {why}.",
                hint="List WAV, FLAC or Ogg files, or folders with such files.",
            )
        yield from sounds


def _measured(path: str) -> Clip:
    """Return the file of noise at ``path`` as a Clip that has its length; raises SourceError if it cannot be read."""
    sound = Clip(path, "", NOISE, 0.0)
    return replace(sound, seconds=sound_seconds(sound))


def _span(size: int, most: int) -> tuple[int, int]:
    """Return the begin and end of a random span within ``range(size)``; its length is random, from 0 to ``most``."""
    width = int(torch.randint(min(most, size) + 1, ()))
    begin = int(torch.randint(size - width + 1, ()))
    return begin, begin + width
