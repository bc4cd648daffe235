"""Pre-trains wav2vec 2.0 to distinguish masked frames from other frames of the clip, https://arxiv.org/abs/2006.11477.

The model is transformers' ``Wav2Vec2ForPreTraining`` (or its conformer), and checkpoints have the keys of that class.
Masks and negatives are drawn when a clip is read. They depend on (seed, epoch, position of the clip), so they are the
same in all evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...util.text import escape, percent
from ..config.settings import Settings
from ..data.sound import Clip
from ..data.split import Split
from ._contrastive import ContrastiveSums, contrastive_sums, masked_frames, most_masked, negatives_of, quantise
from ._conv_frontend import ConvFrontend, check_features, normalise_wave
from ._masks import unchecked_padding
from ._sounds import SoundTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "Wav2Vec2Pretraining"]

USUAL_SHARE = 0.4
"""If less than this share of the frames is masked, the user gets a note; wav2vec 2.0 masks about half."""
COLLAPSED_LOSS, COLLAPSED_PERPLEXITY = 0.05, 1.05
"""A run has collapsed if its contrastive loss and the codebook's perplexity per group are both below these values."""


class Wav2Vec2Pretraining(SoundTask):
    """The task of contrastive pre-training; the loss is divided by the number of masked frames.

    The loss is the sum of its parts ``contrastive`` and, weighted, ``diversity``; the parts ``perplexity`` and
    ``accuracy`` are only for the log.
    """

    texts = False
    metric = "accuracy"
    higher = ("accuracy", "perplexity")
    per_clip = "contrastive"
    gradient_band = (0.5, 2.0)
    static = True

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        check_features(settings)
        self.asked = settings.pretrain
        self._hearing: ConvFrontend | None = None

    def meet(self, model: Any) -> None:
        """Read the sizes of a model's convolutions, and its settings for masking and contrasting frames.

        Raises ConfigError for a model that cannot be pre-trained.
        """
        if not hasattr(model, "quantizer") or not hasattr(model, "project_q"):
            raise ConfigError(
                f"the task wav2vec2_pretrain trains a model with a quantizer, but this is {type(model).__name__}.",
                hint="Give the class: model: {transformers: config.json, architecture: Wav2Vec2ForPreTraining}.",
            )
        self._hearing, config, asked = ConvFrontend(model), model.config, self.asked
        if self._hearing.has_adapter or not hasattr(model.base_model, "masked_spec_embed"):
            why = "with an adapter (add_adapter)" if self._hearing.has_adapter else "without a vector for masked frames"
            raise ConfigError(
                f"the task wav2vec2_pretrain cannot train {type(model).__name__} {why}.",
                hint="Write add_adapter: false, and a mask_time_prob above 0, in the configuration of the model.",
            )
        self.share: float = config.mask_time_prob if asked.mask_prob is None else asked.mask_prob
        self.length: int = config.mask_time_length if asked.mask_length is None else asked.mask_length
        self.fewest: int = config.mask_time_min_masks
        self.negatives: int = config.num_negatives if asked.negatives is None else asked.negatives
        self.weight: float = config.diversity_loss_weight if asked.diversity is None else asked.diversity
        self.kappa: float = config.contrastive_logits_temperature
        self.groups: int = config.num_codevector_groups
        self.entries: int = config.num_codevector_groups * config.num_codevectors_per_group

    @property
    def hearing(self) -> ConvFrontend:
        """The convolutional front end of the model; ``meet`` must have been called before."""
        assert self._hearing is not None
        return self._hearing

    def label(self, clip: Clip) -> Tensor:
        """Return an empty tensor, because pre-training needs no label."""
        return torch.empty(0, dtype=torch.int64)

    def fits(self, clip: Clip) -> bool:
        """Return whether a clip is long enough for two spans of masked frames that begin at different frames."""
        return bool(self.hearing.frames(self._samples(clip)) > self.length)

    def _samples(self, clip: Clip) -> int:
        seconds = clip.seconds if self.asked.crop_s is None else min(clip.seconds, self.asked.crop_s)
        return round(seconds * self.settings.features.rate)

    def split(self, name: str) -> Split:
        """Return the clips of a split, each with the length to which it is cropped (``train.pretrain.crop_s``)."""
        return super().split(name).cropped(self.asked.crop_s)

    def notes(self) -> list[str]:
        """Return a note on each split, and a note if few frames are masked."""
        notes = super().notes()
        if self.share < USUAL_SHARE:
            notes.append(
                f"at most {percent(self.share)} of the frames are masked (train.pretrain.mask_prob); wav2vec 2.0 masks "
                "about half"
            )
        return notes

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return a random crop of a clip, the indices of its masked frames (as ``label``), and their negatives."""
        wave, chance = self.inputs(clip), numpy.random.default_rng(int(torch.randint(2**62, ())))
        size = min(self._samples(clip), len(wave))
        begin = int(chance.integers(len(wave) - size + 1))
        masked = masked_frames(
            self.hearing.frames(size), self.share, self.length, fewest=self.fewest, chance=chance
        )  # fmt: skip
        return {
            "input": normalise_wave(wave[begin : begin + size]),
            "label": torch.from_numpy(masked),
            "negatives": torch.from_numpy(negatives_of(len(masked), self.negatives, chance)),
            "seconds": size / self.settings.features.rate,
            "name": clip.where,
        }

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Return a batch, in which ``labels`` are the indices of masked frames, and ``extras`` has their ``negatives``.

        Both are padded to the largest possible number of masked frames, so that the shapes depend only on the length of
        the longest crop.
        """
        batch = super().collate(examples)
        frames = self.hearing.frames(batch.inputs.shape[1])
        room = most_masked(frames, self.share, self.length, fewest=self.fewest) - batch.labels.shape[1]
        batch = replace(batch, labels=nn.functional.pad(batch.labels, (0, room)))
        negatives = torch.zeros(len(examples), batch.labels.shape[1], self.negatives, dtype=torch.int64)
        for row, one in zip(negatives, examples, strict=True):
            row[: len(one["negatives"])] = one["negatives"]
        return batch.with_extras({"negatives": negatives})

    def begin_step(self, model: Any, step: int) -> None:
        """Set the temperature of the Gumbel softmax, which falls from ``gumbel[0]`` to ``gumbel[1]``."""
        highest, lowest, decay = self.asked.gumbel
        # A tensor is an input of a compiled graph. A float would be a constant, so every step would be compiled again.
        model.quantizer.temperature = torch.tensor(max(highest * decay**step, lowest))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its masked frames."""
        found, perplexity = self._answers(model, batch)
        diversity = (self.entries - perplexity) / self.entries * found.frames
        parts = {
            "contrastive": found.loss, "diversity": diversity, "perplexity": perplexity * found.frames,
            "accuracy": found.correct,
        }  # fmt: skip
        total = found.loss + self.weight * diversity
        return Loss(total, found.frames, {name: part.detach() for name, part in parts.items()})

    def _answers(self, model: Any, batch: Batch) -> tuple[ContrastiveSums, Tensor]:
        """Return the sums of the contrastive loss over a batch's masked frames, and the perplexity of the codebook."""
        body, hearing = model.base_model, self.hearing
        features = _heard(body, batch.inputs)
        frames = features.shape[1]
        places = torch.arange(batch.labels.shape[1], device=features.device)
        valid = places[None] < batch.label_lengths[:, None]
        # One position more than there are frames: the padding of ``labels`` is written there.
        hidden = torch.zeros(len(valid), frames + 1, dtype=torch.bool, device=features.device)
        hidden = hidden.scatter(1, torch.where(valid, batch.labels, frames), valid)[:, :-1]
        states, features = body.feature_projection(features)
        states = torch.where(hidden[..., None], body.masked_spec_embed.to(states.dtype), states)
        # A compiled graph must be right for all batches, padded or not.
        is_padded = torch.compiler.is_compiling() or batch.is_padded
        with unchecked_padding(body):
            mask = hearing.frame_mask(batch.lengths, frames) if is_padded else None
            states = body.encoder(states, attention_mask=mask)[0]
        predicted = model.project_hid(_at(states, batch.labels))
        quantised = quantise(model.quantizer, model.dropout_features(_at(features, batch.labels)), valid)
        targets = model.project_q(quantised.vectors.to(model.project_q.weight.dtype))
        negatives = batch.extras["negatives"]
        found = contrastive_sums(predicted, targets, quantised.codes, negatives, valid, temperature=self.kappa)
        return found, quantised.perplexity

    @torch.no_grad()
    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per masked frame if all frames were equally similar, plus the model's diversity loss."""
        found = self.loss(model, batch)
        diversity = float(found.parts["diversity"]) / max(int(found.items), 1)
        return math.log(1 + self.negatives) + self.weight * diversity

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the loss per masked frame, and each part of the loss per masked frame, over all batches, by name."""
        sums: dict[str, float] = {}
        items = 0
        for batch in batches:
            found = self.loss(model, batch)
            items += int(found.items)
            for name, part in {"loss": found.total, **found.parts}.items():
                sums[name] = sums.get(name, 0.0) + float(part)
        return {name: value / max(items, 1) for name, value in sums.items()}

    def collapsed(self, parts: Mapping[str, float | None]) -> str:
        """Return the reason why the run cannot learn any more; '' if it can. ``parts`` are the parts of a step's loss.

        If all frames have the same code, all negatives are ignored, and the loss is low although nothing was learned
        (https://github.com/huggingface/transformers/issues/14387).
        """
        loss, perplexity = parts.get("contrastive"), parts.get("perplexity")
        if loss is None or perplexity is None:
            return ""
        if loss < COLLAPSED_LOSS and perplexity < COLLAPSED_PERPLEXITY * self.groups:
            return (
                f"contrastive loss {loss:.2g} and perplexity {perplexity:.3g}, for {self.entries} codebook entries in "
                f"{escape(str(self.groups))} groups: every frame has the same code"
            )
        return ""

    def doubts(self, figures: Mapping[str, float]) -> str:
        """Return a text on the figure of an evaluation that is too low for a model that has learned; '' if none is."""
        perplexity, accuracy = figures["perplexity"], figures["accuracy"]
        if perplexity <= 2 * self.groups:
            return f"perplexity {perplexity:.3g} of {self.entries}: it should be above {2 * self.groups}"
        if accuracy <= 3 / (self.negatives + 1):
            return f"accuracy {accuracy:.2f}: it should be above {3 / (self.negatives + 1):.2f}, three times chance"
        return ""


def _heard(body: Any, waves: Tensor) -> Tensor:
    """Return the features (batch, frames, channels) that the convolutions of a model make of waves (batch, samples).

    The ``forward`` of the front end is not used, because it makes the waves require a gradient. That is not needed, and
    it breaks a compiled graph.
    """
    states = waves[:, None]
    for layer in body.feature_extractor.conv_layers:
        states = layer(states)
    return states.transpose(1, 2)


def _at(vectors: Tensor, places: Tensor) -> Tensor:
    """Return the ``vectors`` (batch, time, size) with the indices ``places`` (batch, number): (batch, number, size)."""
    return vectors.gather(1, places[..., None].expand(-1, -1, vectors.shape[-1]))


TASK: type[Task] = Wav2Vec2Pretraining
