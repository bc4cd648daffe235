"""Clips of train are changed at random, in the same way by every process, and those of dev and test are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.settings import Augment, Features
from ckptsurgeon.trainer.data.augment import Augmenter
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.job import Job

from .sounds import corpus

RATE = 16_000


def test_speed_changes_length_and_pitch() -> None:
    tone = torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)
    for speed in (0.8, 1.25):
        found = Augmenter(Augment(speed=(speed,)), Features()).wave(tone)
        assert len(found) == pytest.approx(RATE / speed, abs=2)
        peak = torch.fft.rfft(found[: RATE // 2]).abs().argmax() * RATE / (RATE // 2)
        assert float(peak) == pytest.approx(440 * speed, abs=2)
    assert torch.equal(Augmenter(Augment(speed=(1.0,)), Features()).wave(tone), tone)


def test_each_speed_is_drawn_as_often() -> None:
    augmenter = Augmenter(Augment(speed=(0.5, 1.0, 2.0)), Features())
    torch.manual_seed(0)
    lengths = [len(augmenter.wave(torch.ones(400))) for _ in range(300)]
    assert {200, 400, 800} == set(lengths)
    assert min(lengths.count(one) for one in (200, 400, 800)) > 70


@pytest.mark.parametrize("ratio", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_that_is_asked_for(ratio: float) -> None:
    torch.manual_seed(0)
    wave = torch.randn(RATE * 4) * 0.1
    noise = Augmenter(Augment(snr_db=(ratio, ratio)), Features()).wave(wave) - wave
    found = 10 * math.log10(float(wave.square().mean() / noise.square().mean()))
    assert found == pytest.approx(ratio, abs=0.2)


def test_noise_is_a_part_of_a_sound_and_has_the_ratio() -> None:
    """A long sound is heard from anywhere, a short one is repeated, and where it is silent nothing is added."""
    long = np.linspace(-0.5, 0.5, RATE * 2, dtype=np.float32)
    for path, samples in (("noise/a/long.wav", long), ("short.flac", long[:100]), ("silent.wav", 0 * long)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE, subtype="PCM_16")
    Path("noise/README").write_text("no sound")
    torch.manual_seed(0)
    wave = torch.randn(RATE // 2) * 0.1

    def added(*paths: str) -> torch.Tensor:
        return Augmenter(Augment(noise=paths, snr_db=(10.0, 10.0)), Features()).wave(wave) - wave

    several = [added("noise") for _ in range(8)]
    for noise in several:
        assert 10 * math.log10(float(wave.square().mean() / noise.square().mean())) == pytest.approx(10, abs=0.01)
        assert float(noise.diff().std() / noise.diff().mean()) < 0.2  # a straight line, as the sound is
    assert len({round(float(noise[0] / noise.abs().max()), 3) for noise in several}) > 3
    assert torch.allclose(added("short.flac")[:100], added("short.flac")[100:200], atol=1e-6)
    assert not added("silent.wav").any()


def test_masks_are_no_wider_than_they_may_be_and_have_the_mean() -> None:
    features = Features(size=8, stack=2)
    augmenter = Augmenter(Augment(time_masks=1, time_width=12, time_share=0.5), features)
    torch.manual_seed(0)
    widths = set()
    for _ in range(200):
        given = torch.randn(20, 16)
        found = augmenter.masked(given)
        masked = (found == given.mean()).all(1)
        assert torch.equal(found[~masked], given[~masked])
        at = masked.nonzero().flatten()
        assert len(at) == 0 or int(at[-1] - at[0]) + 1 == len(at)
        widths.add(len(at))
    assert widths == set(range(7))  # 12 frames are 6 where two are stacked
    short = Augmenter(Augment(time_masks=1, time_width=12, time_share=0.1), features)
    assert {int((short.masked(torch.randn(20, 16)) == 0).all(1).sum()) for _ in range(50)} <= {0}
    bands = Augmenter(Augment(freq_masks=1, freq_width=3), features)
    widths = set()
    for _ in range(100):
        given = torch.randn(20, 16)
        masked = (bands.masked(given) == given.mean()).all(0)
        assert torch.equal(masked[:8], masked[8:])  # the same bands of both frames that are stacked
        widths.add(int(masked[:8].sum()))
    assert widths == {0, 1, 2, 3}


def test_masks_of_waves_are_in_frames_and_none_are_of_bands() -> None:
    augmenter = Augmenter(Augment(time_masks=1, time_width=5, freq_masks=3), Features(kind="waves"))
    torch.manual_seed(0)
    most = 0
    for _ in range(100):
        given = torch.randn(RATE)
        most = max(most, int((augmenter.masked(given) != given).sum()))
    assert 600 < most <= 800  # 5 frames of 10 ms


@pytest.fixture
def job() -> Callable[..., Job]:
    corpus("train.csv", ["ab", "ba", "aab", "bab"])
    corpus("dev.csv", ["ab", "ba"])
    Path("alphabet.txt").write_text("a\nb\n")
    document = {
        "model": {"name": "deepspeech", "n_input": 26, "n_hidden": 8, "alphabet": "alphabet.txt", "n_context": 1},
        "train": {
            "task": "ctc", "batch_size": 2, "features": {"kind": "mfcc", "size": 26},
            "data": {"train": "train.csv", "dev": "dev.csv"},
        },
    }  # fmt: skip
    Path("net.yaml").write_text(yaml.safe_dump(document))
    return lambda *sets: build_job("net.yaml", sets=sets, device="cpu")


MASKS = ("augment.time_masks=2", "augment.time_share=0.5", "augment.freq_masks=2")


def inputs(source: Any, epoch: int = 0) -> torch.Tensor:
    return next(iter(source.read(0, epoch))).inputs


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("sets", [MASKS, ("augment.snr_db=[0, 10]",)])
def test_only_train_is_changed_and_every_epoch_otherwise(job: Callable[..., Job], sets: tuple[str, ...]) -> None:
    plain, changed, again = job(), job(*sets), job(*sets, "data.workers=2")
    assert not torch.equal(inputs(changed.train), inputs(plain.train))
    assert torch.equal(inputs(changed.train), inputs(again.train))
    assert plain.dev is not None
    assert torch.equal(inputs(changed.dev), inputs(plain.dev))
    for one in (plain, changed, again):
        one.close()


@pytest.mark.long
def test_a_cache_keeps_what_is_not_changed(job: Callable[..., Job]) -> None:
    noisy = ("augment.snr_db=[0, 10]", "data.cache=cache")
    note = "train.augment changes the sounds of train: their features are computed each time, not cached"
    assert note in job(*noisy).notes
    assert note not in job(*MASKS, "data.cache=cache").notes
    assert torch.equal(inputs(job(*noisy).train), inputs(job("augment.snr_db=[0, 10]").train))
    assert torch.equal(inputs(job(*MASKS, "data.cache=cache").train), inputs(job(*MASKS).train))
    assert torch.equal(inputs(job("data.cache=cache").train), inputs(job().train))


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ("augment.speed=[0, 1]", "train.augment.speed is 0"),
        ("augment.snr_db=[20]", "train.augment.snr_db is"),
        ("augment.snr_db=[20, 10]", "it must be the lowest ratio and the highest"),
        ("augment.time_share=2", "train.augment.time_share is 2"),
        ("augment.noise=noise", "train.augment.noise needs snr_db"),
        ("augment={noise: none, snr_db: [5, 20]}", "train.augment.noise: none does not exist. List WAV"),
        ("augment={noise: [texts], snr_db: [5, 20]}", "train.augment.noise: texts contains no sound"),
        ("augment={noise: texts/a.txt, snr_db: [5, 20]}", "train.augment.noise: texts/a.txt cannot be read"),
        ("augment.times=2", "train.augment has no field 'times'. Did you mean time_"),
    ],
)
def test_what_cannot_be_is_refused(job: Callable[..., Job], sets: str, why: str) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("no sound")
    with pytest.raises((cs.ConfigError, cs.SourceError)) as raised:
        job(sets)
    assert why in f"{raised.value.message} {raised.value.hint}"
