"""Sounds as inputs of a network: prepared by the model's own feature extractor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ....errors import ConfigError
from ....util.text import count, escape
from .folder_files import files_of
from .processors import open_processor

__all__ = ["SUFFIXES", "sound_inputs"]

SUFFIXES = (".wav", ".flac", ".ogg")
MOST_SAMPLES = 1 << 27
"""The largest number of samples of a batch; in float32, they take half a gigabyte."""


def sound_inputs(path: str, folder: str) -> tuple[dict[str, Tensor], str]:
    """Return the arguments of ``forward`` for the sounds at ``path``, and a text on unused parts; "" if there are none.

    ``path`` is a file, or a folder with sounds, which make one batch without padding. Sounds of different lengths are
    cut to the length of the shortest. This is not needed if the feature extractor in the model's ``folder`` makes all
    sounds equally long; Whisper's does, and drops everything after 30 seconds. Channels are averaged. Raises
    ConfigError if a sound cannot be read, or has another sample rate than the model.
    """
    names, left_out = files_of(path, SUFFIXES, "sounds")
    extractor = open_processor(folder, "AutoFeatureExtractor")
    waves = _waves(path, names, extractor.sampling_rate)
    made = [_extracted(extractor, wave) for wave in waves]
    shortest = min(map(len, waves))
    cut = f"only the first {shortest / extractor.sampling_rate:.2f} s of each" if not _are_alike(made) else ""
    if cut:
        made = [_extracted(extractor, wave[:shortest]) for wave in waves]
    else:
        cut = _dropped(extractor, waves, made)
    arguments = {name: torch.cat([one[name] for one in made]) for name in made[0]}
    others = f"without {count(left_out, 'other file')}" if left_out else ""
    return arguments, ", ".join(filter(None, (cut, others)))


def _dropped(extractor: Any, waves: Sequence[Any], made: Sequence[Mapping[str, Tensor]]) -> str:
    """Return a text on sounds whose end the extractor drops, because they are longer than its ``n_samples``; else ''.

    ``made`` are the arguments for each sound. Some extractors divide longer sounds, and drop nothing.
    """
    limit = int(getattr(extractor, "n_samples", 0))
    longer = [(wave[:limit], one) for wave, one in zip(waves, made, strict=True) if 0 < limit < len(wave)]
    dropped = sum(_are_equal(_extracted(extractor, begin), one) for begin, one in longer)
    return f"only the first {limit / extractor.sampling_rate:g} s of {count(dropped, 'sound')}" if dropped else ""


def _waves(path: str, names: Sequence[str], rate: int) -> list[Any]:
    """Return the sounds, one array of samples for each file; raises ConfigError if all sounds together are too long."""
    soundfile = _soundfile()
    waves, samples = [], 0
    for name in names:
        waves.append(_wave(soundfile, name, rate))
        samples += len(waves[-1])
        if samples > MOST_SAMPLES:
            raise ConfigError(
                f"the sounds of {escape(path)} have more samples than the limit of {MOST_SAMPLES:,}.",
                hint="Give fewer or shorter sounds.",
            )
    return waves


def _wave(soundfile: Any, name: str, rate: int) -> Any:
    try:
        wave, own_rate = soundfile.read(name, frames=MOST_SAMPLES + 1, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{escape(name)} cannot be read as audio: {escape(str(error), 200)}.") from error
    if own_rate != rate:
        raise ConfigError(
            f"the sample rate of {escape(name)} is {own_rate} Hz, but the model needs {rate} Hz.",
            hint="Resample the file first.",
        )
    if not len(wave):
        raise ConfigError(f"{escape(name)} has no samples.", hint="Give sounds that are not empty.")
    return wave.mean(1)


def _soundfile() -> Any:
    try:
        return import_module("soundfile")
    except (ImportError, OSError) as error:  # OSError if libsndfile is missing
        raise ConfigError(
            f"to read audio, the package soundfile is needed, and it cannot be imported: {error}.",
            hint="Run pip install soundfile, or give tensors: --inputs FILE.safetensors.",
        ) from error


def _extracted(extractor: Any, wave: Any) -> Mapping[str, Tensor]:
    return dict(extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt"))


def _are_alike(made: Sequence[Mapping[str, Tensor]]) -> bool:
    """Return whether the arguments of all sounds have the same shapes, so that they make one batch."""
    return len({tuple((name, value.shape) for name, value in one.items()) for one in made}) == 1


def _are_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
