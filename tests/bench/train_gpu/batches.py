"""Batches for the loops that ours is measured against: of clips in memory, by the functions of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices
from transformers.trainer_pt_utils import LengthGroupedSampler

from .window import Window
from .work import TOKENS, Clip, Work

__all__ = ["Given", "batches"]

Given = tuple[Mapping[str, Tensor], float]
"""The inputs of a model, and the seconds of the clips in them."""
NO_LABEL = -100
"""What transformers takes for padding of labels."""


def batches(model: Any, work: Work, window: Window, *, workers: int = 0, pinned: bool = False) -> Iterator[Given]:
    """Yield the batches of an epoch that is longer than the run, of ``size`` clips each.

    Without workers the process that trains makes them. Clips of many lengths are grouped by length, as in the published
    commands (``--group_by_length``).
    """
    clips = work.clips() * work.repeats(window.all_steps)
    sampler = None
    if work.shortest_s < work.longest_s:
        sampler = LengthGroupedSampler(work.size, lengths=[len(clip.wave) for clip in clips])
    yield from DataLoader(
        clips,  # type: ignore[arg-type]
        batch_size=work.size, shuffle=sampler is None, sampler=sampler, drop_last=True, num_workers=workers,
        collate_fn=Labelled() if work.is_ctc else Masked(model), pin_memory=pinned,
        multiprocessing_context="fork" if workers else None,  # no copy of the model, with Python 3.14 either
    )  # fmt: skip


class Masked:
    """Puts clips of one length together, and hides some of their frames."""

    def __init__(self, model: Any) -> None:
        self._config = model.config
        self._lengths = model._get_feat_extract_output_lengths

    def __call__(self, clips: Sequence[Clip]) -> Given:
        waves = torch.stack([torch.from_numpy(clip.wave) for clip in clips])
        shape = (len(waves), int(self._lengths(waves.shape[1])))
        masked = _compute_mask_indices(shape, self._config.mask_time_prob, self._config.mask_time_length)
        negatives = _sample_negative_indices(shape, self._config.num_negatives, mask_time_indices=masked)
        inputs = {
            "input_values": waves,
            "attention_mask": torch.ones_like(waves, dtype=torch.long),  # nothing is padding here
            "mask_time_indices": torch.from_numpy(masked).long(),
            "sampled_negative_indices": torch.from_numpy(negatives).long(),
        }
        return inputs, sum(clip.seconds for clip in clips)


class Labelled:
    """Puts clips of any length together, and the tokens of their texts."""

    def __call__(self, clips: Sequence[Clip]) -> Given:
        waves = [torch.from_numpy(clip.wave) for clip in clips]
        labels = [torch.tensor([TOKENS.index(letter) for letter in clip.text]) for clip in clips]
        inputs = {
            "input_values": pad_sequence(waves, batch_first=True),
            "attention_mask": pad_sequence(
                [torch.ones(len(wave), dtype=torch.long) for wave in waves], batch_first=True
            ),
            "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LABEL),
        }
        return inputs, sum(clip.seconds for clip in clips)
