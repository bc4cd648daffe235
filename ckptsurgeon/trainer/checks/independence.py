"""What a model says of a clip depends neither on its company in the batch nor on how much padding follows it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...text import escape, listing
from ..evaluating import loss_per_item
from ..settings import Settings
from ..tasks._task import Batch, Task
from ._check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["independent"]

NAME = "independent of batch and padding"
CLIPS = 4
NEAR = 1e-3
NEAR_IN_BF16 = 3e-2
MORE_PADDING = 0.5


def independent(model: nn.Module, task: Task, batch: Batch, *, settings: Settings) -> Check:
    """Compare the loss of a few clips together with their losses one by one, and with that of more padding."""
    size = min(CLIPS, len(batch.names))
    if size < 2:
        return Check(NAME, NOT_RUN, "the batch holds one clip")
    few = _part(batch, 0, size)
    together = loss_per_item(model, task, [few], settings=settings)
    alone = loss_per_item(model, task, [_part(batch, i, i + 1) for i in range(size)], settings=settings)
    try:
        padded = loss_per_item(model, task, [_padded(few)], settings=settings)
    except RuntimeError as error:
        return Check(NAME, NOT_RUN, f"the model does not take longer inputs: {escape(str(error), 100)}")
    furthest = max(abs(alone - together), abs(padded - together)) / max(abs(together), 1e-12)
    says = f"{size} clips: {together:.5g} together, {alone:.5g} one by one, {padded:.5g} with more padding"
    if furthest <= (NEAR_IN_BF16 if settings.precision == "bf16" else NEAR):
        return Check(NAME, PASS, says)
    groups = [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)]
    if groups:
        return Check(NAME, WARN, f"{says}; the group norm {listing(groups, 1, where='')} sees padding, by design")
    return Check(NAME, FAIL, says)


def _part(batch: Batch, first: int, last: int) -> Batch:
    """Return some clips of a batch, without the padding that only others needed."""
    lengths, label_lengths = batch.lengths[first:last], batch.label_lengths[first:last]
    inputs, labels = batch.inputs[first:last], batch.labels[first:last]
    if inputs.dim() > 1:
        inputs = inputs[:, : int(lengths.max())]
    if labels.dim() > 1:
        labels = labels[:, : int(label_lengths.max())]
    return replace(
        batch, inputs=inputs, lengths=lengths, labels=labels, label_lengths=label_lengths, names=batch.names[first:last]
    )


def _padded(batch: Batch) -> Batch:
    """Return a batch with more zeros behind it."""
    if batch.inputs.dim() < 2:
        return batch
    shape = list(batch.inputs.shape)
    shape[1] = max(1, int(shape[1] * MORE_PADDING))
    return replace(batch, inputs=torch.cat([batch.inputs, batch.inputs.new_zeros(shape)], 1))
