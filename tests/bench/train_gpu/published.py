"""The loops that transformers publishes, to measure ours against. Written again from what they do, none of their code.

Pre-training is that of ``run_wav2vec2_pretraining_no_trainer.py``, without accelerate, which on one device moves batches
and enters autocast: the process that trains draws masks and negatives with numpy while it makes a batch; the model's own
forward has the losses; gradients are multiplied, one by one, by 1 / masked frames; the norm of each is fetched at every
step; the losses are where they are logged, at every step in the commands of its README. AdamW is torch's as it comes.

Fine-tuning is that of ``run_speech_recognition_ctc.py``, that is of transformers' ``Trainer``: batches in pinned memory, fused
AdamW, gradients clipped to a norm of 1, and at each step a look whether the loss is a number.

Not here: reading clips (they lie in memory), gradient checkpointing, saving.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .arms import Arm
from .batches import Given, batches
from .window import Window
from .work import ADAM, Work

__all__ = ["fine_tune", "model_of", "pretrain", "train_published"]


def train_published(arm: Arm, work: Work, window: Window, options: argparse.Namespace) -> Any:
    """Train as transformers does, and return the model."""
    model = model_of(work).to(options.device)
    window.meet(model)
    bf16 = arm.precision == "bf16"
    if work.is_ctc:
        fine_tune(model, batches(model, work, window, pinned=window.device.type == "cuda"), window=window, bf16=bf16)
    else:
        pretrain(model, batches(model, work, window), window=window, bf16=bf16)
    return model


def model_of(work: Work) -> Any:
    """The model of a work, with random weights."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    model = (Wav2Vec2ForCTC if work.is_ctc else Wav2Vec2ForPreTraining)(Wav2Vec2Config(**work.fields))
    if work.is_ctc:
        model.freeze_feature_encoder()
    return model


def autocast(device: torch.device, bf16: bool) -> Any:
    """bf16 where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def falling(optimizer: torch.optim.Optimizer, window: Window) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that falls to almost nothing over the run."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (window.all_steps + 1))


def pretrain(model: Any, given: Iterator[Given], *, window: Window, bf16: bool) -> list[dict[str, float]]:
    """Take steps of pre-training and return what was logged of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **ADAM)
    schedule = falling(optimizer, window)
    model.train()
    logged = []
    for step in range(window.all_steps):
        window.begin()
        inputs, seconds = next(given)
        batch = {name: one.to(window.device) for name, one in inputs.items()}
        masked = batch["mask_time_indices"].sum()
        with window.counting(batch["input_values"].numel()):
            with autocast(window.device, bf16):
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
        window.end(len(batch["input_values"]), seconds, batch["input_values"].numel())
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


def fine_tune(model: Any, given: Iterator[Given], *, window: Window, bf16: bool) -> Tensor:
    """Take steps of fine-tuning and return the sum of their losses, which is logged every 500 steps."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, **ADAM)
    schedule = falling(optimizer, window)
    model.train()
    total = torch.zeros((), device=window.device)
    for _ in range(window.all_steps):
        window.begin()
        inputs, seconds = next(given)
        batch = {name: one.to(window.device, non_blocking=True) for name, one in inputs.items()}
        with window.counting(batch["input_values"].numel()):
            with autocast(window.device, bf16):
                loss = model(**batch).loss
            loss.backward()
        if not (torch.isnan(loss.detach()) or torch.isinf(loss.detach())):
            total += loss.detach()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        window.end(len(batch["input_values"]), seconds, batch["input_values"].numel())
    return total
