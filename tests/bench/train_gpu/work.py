"""What is trained: the model's configuration, and clips."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy

__all__ = ["ADAM", "RATE", "TOKENS", "Clip", "Work", "text_of", "work_of"]

RATE = 16_000
ADAM: Mapping[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
TOKENS = ("<pad>", "|", *"abcdefghijklmnopqrstuvwxyz'", *"012")
"""32, as many as the usual models for English have; the first is the blank."""

BASE: Mapping[str, Any] = {"model_type": "wav2vec2", "layerdrop": 0.0}
"""transformers' own defaults are those of wav2vec2-base, but for what is said here and in PUBLISHED."""
PUBLISHED: Mapping[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
"""The published script of pre-training refuses a model without the first two."""
PRETRAIN: Mapping[str, Any] = {"architectures": ["Wav2Vec2ForPreTraining"], "mask_time_prob": 0.65}
CTC: Mapping[str, Any] = {
    "architectures": ["Wav2Vec2ForCTC"], "vocab_size": len(TOKENS), "pad_token_id": 0, "ctc_loss_reduction": "mean",
    "mask_time_prob": 0.05,
}  # fmt: skip
LETTERS_S = 15
"""Letters in a second of speech, about."""


@dataclass(frozen=True)
class Clip:
    """A wave of mean 0 and variance 1, as clips are brought to, and its text."""

    wave: numpy.ndarray
    text: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.wave) / RATE


@dataclass(frozen=True)
class Work:
    """What is trained: a model (``fields``) on batches of ``size`` clips of ``shortest_s`` to ``longest_s`` seconds.

    ``batch_s`` are the seconds in a batch of ours, if its batches are made by seconds; ``distinct`` are the clips that
    there are, of which an epoch has each as often as is needed; ``workers`` make ours.
    """

    name: str
    fields: Mapping[str, Any]
    size: int
    shortest_s: float
    longest_s: float
    batch_s: float | None
    distinct: int
    workers: int

    @property
    def is_ctc(self) -> bool:
        """Whether texts are learned, and not the waves themselves."""
        return self.name != "pretrain"

    @property
    def read_ahead(self) -> int:
        """How many batches lie ready when a loop has waited."""
        from ckptsurgeon.trainer.data.loader import AHEAD

        return AHEAD * self.workers

    def clips(self) -> list[Clip]:
        """The clips: noise, always the same."""
        chance = numpy.random.default_rng(0)
        seconds = numpy.linspace(self.shortest_s, self.longest_s, self.distinct)
        waves = [chance.standard_normal(round(one * RATE), dtype=numpy.float32) for one in seconds]
        return [Clip(wave, text_of(len(wave) / RATE, chance) if self.is_ctc else "a") for wave in waves]

    def repeats(self, steps: int) -> int:
        """How often each clip has to be in an epoch that is longer than so many steps, and than what is read ahead."""
        batches = steps + self.read_ahead + 1
        mean_s = (self.shortest_s + self.longest_s) / 2
        return -(-batches * max(self.size, round((self.batch_s or 0) / mean_s)) // self.distinct)


def text_of(seconds: float, chance: numpy.random.Generator) -> str:
    """A text that takes about so long to say."""
    letters = chance.choice(list("abcdefghijklmnopqrstuvwxyz|"), max(1, round(LETTERS_S * seconds)))
    return "".join(letters).strip("|") or "a"


def work_of(name: str, *, tiny: bool) -> Work:
    """What a name stands for; ``tiny``: of a size that a CPU trains in a moment."""
    from tests.trainer.waves import MINIATURE

    small = {**MINIATURE, "num_hidden_layers": 1, "conv_dim": [16] * 7}  # to trace a layer takes as long as to train it
    body = {**(small if tiny else BASE), **PUBLISHED, **(PRETRAIN if name == "pretrain" else CTC)}
    workers = 0 if tiny else min(8, os.cpu_count() or 1)
    if name == "lengths":
        shortest, longest, batch_s = (0.2, 1.0, 3.0) if tiny else (1.0, 15.0, 160.0)
    else:
        shortest, longest, batch_s = (0.5, 0.5, None) if tiny else (10.0, 10.0, None)
    return Work(name, body, 4 if tiny else 16, shortest, longest, batch_s, 8 if tiny else 64, workers)
