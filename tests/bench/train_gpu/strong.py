"""A loop as a good engineer would write it today, to measure ours against: nothing waits for the GPU.

TF32 in what is left in float32, fused AdamW, torch.compile, batches made by workers and copied from pinned memory, losses
fetched every ten steps. The whole model of pre-training is compiled for the one shape of its batches. In fine-tuning numpy draws
masks in the middle of the model, so that the parts before and after them are compiled; for clips of many lengths, each layer
of the encoder, once for all lengths.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .arms import Arm
from .batches import batches
from .published import autocast, falling, model_of
from .window import Window
from .work import ADAM, Work

__all__ = ["train_strong"]

EVERY = 10
"""Steps whose losses are fetched together."""


def train_strong(arm: Arm, work: Work, window: Window, options: argparse.Namespace) -> Any:
    """Train, and return the model."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _train(arm, work, window, options)
    finally:
        torch.set_float32_matmul_precision(before)


def _train(arm: Arm, work: Work, window: Window, options: argparse.Namespace) -> Any:
    model = model_of(work).to(options.device)
    window.meet(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, **ADAM)
    schedule = falling(optimizer, window)
    given = batches(model, work, window, workers=work.workers, pinned=window.device.type == "cuda")
    model.train()
    waiting, logged = [], []
    for step in range(window.all_steps):
        window.begin()
        if step == 1:  # operations are counted in the first step: the counter cannot look into a graph
            compile_model(model, work, backend=options.backend)
        inputs, seconds = next(given)
        batch = {name: one.to(window.device, non_blocking=True) for name, one in inputs.items()}
        with window.counting(batch["input_values"].numel()):
            with autocast(window.device, arm.precision == "bf16"):
                loss = loss_of(model, batch)
            loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0 if work.is_ctc else math.inf)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        waiting.append(loss.detach())
        if len(waiting) == EVERY:
            logged += torch.stack(waiting).tolist()
            waiting = []
        window.end(len(batch["input_values"]), seconds, batch["input_values"].numel())
    return model


def compile_model(model: Any, work: Work, *, backend: str) -> None:
    """Compile a model, or the parts of it that can be, in place."""
    torch.compiler.reset()
    equal = work.shortest_s == work.longest_s
    body = model.wav2vec2
    parts = [model] if not work.is_ctc else [body.feature_extractor, body.encoder] if equal else body.encoder.layers
    for part in parts:
        part.compile(dynamic=not equal, backend=backend)


def loss_of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a batch: of fine-tuning the mean over clips, of pre-training that over masked frames."""
    loss: Tensor = model(**batch).loss
    return loss / batch["mask_time_indices"].sum() if "mask_time_indices" in batch else loss
