"""What a model is given of a sound, held against the bundled models' front end, TensorFlow and the definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.settings import Features
from ckptsurgeon.trainer.data.inputs import FeatureExtractor
from ckptsurgeon.trainer.data.sound import Clip, read_sound
from ckptsurgeon.trainer.models._layers import LogMel

from .sounds import CLIPS, tone

GOLDEN = CLIPS.parent / "golden" / "mfcc" / "one.json"
COQUI = Features(kind="mfcc", size=26, window_s=0.032, step_s=0.020, centred=False)


def sound(path: str | Path, rate: int = 16_000, begin_s: float = 0.0, seconds: float = 10.0) -> torch.Tensor:
    return torch.from_numpy(read_sound(Clip(str(path), "", "x.csv, line 2", seconds, begin_s), rate))


def test_mfcc_is_what_coqui_stt_computes() -> None:
    recorded = torch.tensor(json.loads(GOLDEN.read_text())["mfcc"])
    assert torch.allclose(FeatureExtractor(COQUI)(sound(CLIPS / "one.wav")), recorded, atol=1e-4)


def test_log_mel_is_what_the_bundled_models_compute() -> None:
    wave = sound(CLIPS / "one.wav")
    theirs, frames = LogMel(40)(wave[None], torch.tensor([len(wave)]))
    ours = FeatureExtractor(Features())(wave)
    assert torch.equal(ours, theirs[0])
    assert len(ours) == int(frames)


def test_each_format_is_read_as_one_channel_at_the_rate_that_is_wanted() -> None:
    assert len(sound(CLIPS / "one.wav")) == 4800
    stereo, rate = soundfile.read(CLIPS / "two.flac", dtype="float32")
    mean = stereo.mean(1)
    assert (rate, stereo.shape) == (22_050, (5968, 2))
    assert torch.equal(sound(CLIPS / "two.flac", rate), torch.from_numpy(mean))
    at_16k = sound(CLIPS / "two.flac")
    assert len(at_16k) == pytest.approx(5968 * 16_000 / 22_050, abs=1)
    assert at_16k.square().mean() == pytest.approx(float((mean**2).mean()), rel=0.05)
    assert len(sound(CLIPS / "three.ogg")) == 4800


def test_a_resampled_tone_keeps_its_pitch() -> None:
    tone("a.wav", 0.5, hertz=1000, rate=44_100)
    spectrum = torch.fft.rfft(sound("a.wav")).abs()
    assert int(spectrum.argmax()) * 16_000 / 8000 == pytest.approx(1000, abs=2)


def test_a_part_of_a_sound_is_that_part() -> None:
    whole = sound(tone("a.wav", 0.5))
    assert torch.equal(sound("a.wav", begin_s=0.1, seconds=0.2), whole[1600:4800])


@pytest.mark.parametrize("features", [Features(), Features(stack=3), COQUI, replace(COQUI, stack=2)], ids=repr)
@pytest.mark.parametrize("samples", [100, 512, 831, 4800, 5001])
def test_frames_are_counted_without_computing_them(features: Features, samples: int) -> None:
    extractor = FeatureExtractor(features)
    found = extractor(torch.randn(samples))
    assert found.shape == (extractor.frames(samples / features.rate), extractor.width)


def test_stacked_frames_stand_side_by_side_and_the_last_fills_up() -> None:
    plain = FeatureExtractor(Features())(sound(CLIPS / "one.wav"))
    stacked = FeatureExtractor(Features(stack=3))(sound(CLIPS / "one.wav"))
    assert (len(plain), len(stacked)) == (31, 11)
    assert torch.equal(stacked[0], plain[:3].flatten())
    assert torch.equal(stacked[-1], torch.cat([plain[30], plain[30], plain[30]]))


def test_centred_takes_each_clips_mean_off() -> None:
    wave = sound(CLIPS / "one.wav") + 0.1
    for features in (Features(), replace(COQUI, centred=True), Features(kind="waves")):
        assert FeatureExtractor(features)(wave).mean(0).abs().max() < 1e-5
        assert FeatureExtractor(replace(features, centred=False))(wave).mean(0).abs().max() > 1e-2
    assert torch.equal(FeatureExtractor(Features(kind="waves", centred=False))(wave), wave)


def test_settings_that_give_no_features_are_refused() -> None:
    with pytest.raises(cs.ConfigError, match="size is 41: mfcc has at most 40 features"):
        FeatureExtractor(replace(COQUI, size=41))
    with pytest.raises(cs.ConfigError, match="windows of 0 samples"):
        FeatureExtractor(Features(window_s=0.0))


@pytest.mark.parametrize("noise", [0, 1e-3])
def test_channels_that_cancel_each_other_are_an_error(noise: float) -> None:
    wave, other = np.random.default_rng(0).standard_normal((2, 1600)) / 9
    soundfile.write("a.wav", np.stack([wave, noise * other - wave], 1), 16_000)
    why = "has channels that cancel each other: their mean, which the model gets, is silent"
    hint = (
        "Make one channel of it (`sox in.wav out.wav remix 1` keeps the first), or remove the clip from the manifest."
    )
    with pytest.raises(cs.SourceError) as caught:
        sound("a.wav")
    assert str(caught.value) == f"x.csv, line 2: a.wav {why}. {hint}"
    for right in (other, np.zeros(1600)):
        soundfile.write("a.wav", np.stack([wave, right], 1), 16_000)
        assert len(sound("a.wav")) == 1600


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (np.zeros(0), "a.wav has no samples"),
        (np.zeros(1600), "a.wav is silent: all of its samples are 0"),
        (np.full(1600, np.nan), "a.wav contains samples that are NaN or infinite"),
    ],
)
def test_a_clip_that_says_nothing_is_an_error_that_names_it(samples: np.ndarray, why: str) -> None:
    soundfile.write("a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(cs.SourceError) as caught:
        sound("a.wav")
    assert str(caught.value) == f"x.csv, line 2: {why}. Remove the clip from the manifest."
