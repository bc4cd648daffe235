"""wav2vec 2.0's pre-training as transformers publishes it, to measure ours against.

Written again from what ``run_wav2vec2_pretraining_no_trainer.py`` does, none of its code, and without accelerate, which on one
device moves batches and enters autocast: the process that trains draws masks and negatives with numpy while it makes a
batch, by the library's own functions; the model's own forward has the losses; gradients are multiplied, one by one, by
1 / masked frames; the norm of each is fetched at every step; the losses are where they are logged, at every step in the
commands of its README. AdamW is torch's as it comes. Not here: reading clips (they lie in memory), gradient
checkpointing, saving.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

__all__ = ["batches", "train"]


class Collator:
    """Puts clips together, and hides some of their frames."""

    def __init__(self, model: Any) -> None:
        self._model, self._config = model, model.config

    def __call__(self, clips: Sequence[numpy.ndarray]) -> dict[str, Tensor]:
        waves = torch.from_numpy(numpy.stack(clips))
        shape = (len(waves), int(self._model._get_feat_extract_output_lengths(waves.shape[1])))
        told = torch.ones_like(
            waves, dtype=torch.long
        )  # nothing is padding here; models with a group norm are not told
        masked = _compute_mask_indices(shape, self._config.mask_time_prob, self._config.mask_time_length)
        negatives = _sample_negative_indices(shape, self._config.num_negatives, mask_time_indices=masked)
        batch = {
            "input_values": waves,
            "mask_time_indices": torch.from_numpy(masked).long(),
            "sampled_negative_indices": torch.from_numpy(negatives).long(),
        }
        return batch | ({"attention_mask": told} if self._config.feat_extract_norm == "layer" else {})


def batches(model: nn.Module, clips: Sequence[numpy.ndarray], size: int) -> Iterator[Mapping[str, Tensor]]:
    """Yield batches for ever, made by this process."""
    loader = torch.utils.data.DataLoader(
        list(clips), batch_size=size, shuffle=True, drop_last=True, collate_fn=Collator(model)
    )
    while True:
        yield from loader


def train(
    model: Any, given: Iterator[Mapping[str, Tensor]], *, steps: int, optimizer: torch.optim.Optimizer, bf16: bool
) -> list[dict[str, float]]:
    """Take steps and return what was logged of each."""
    device = next(model.parameters()).device
    model.train()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
    logged = []
    for step in range(steps):
        batch = {name: one.to(device) for name, one in next(given).items()}
        masked = batch["mask_time_indices"].sum()
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            found = model(**batch)
        found.loss.backward()
        multiply(model, 1 / masked)
        norm = gradient_norm(model)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        model.set_gumbel_temperature(max(2.0 * 0.999995**step, 0.5))
        logged.append(
            {
                "loss": (found.loss / masked).item(),
                "contrastive": (found.contrastive_loss / masked).item(),
                "diversity": (found.diversity_loss / masked).item(),
                "perplexity": found.codevector_perplexity.item(),
                "norm": norm,
            }
        )
    return logged


def multiply(model: nn.Module, factor: Tensor) -> None:
    """Multiply the gradients."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def gradient_norm(model: nn.Module) -> float:
    """Return the norm of the gradient, fetched from the device parameter by parameter."""
    squares = [parameter.grad.norm(2).item() ** 2 for parameter in model.parameters() if parameter.grad is not None]
    return float(sum(squares) ** 0.5)
