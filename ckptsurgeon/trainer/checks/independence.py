"""Checks that a clip's output depends neither on the other clips of its batch nor on the padding after it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...util.text import escape
from ..config.settings import Settings
from ..evaluation import loss_per_item
from ..tasks._task import Batch, Task
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["batch_independence"]

INDEPENDENT = "independent of batch and padding"
CLIPS = 4
TOLERANCE = 1e-3
TOLERANCE_BF16 = 3e-2
"""Losses count as equal if their relative difference is at most ``TOLERANCE`` (in a bf16 run: ``TOLERANCE_BF16``)."""
MORE_PADDING = 0.5
"""The length of the added padding, as a share of the length of the batch."""
IGNORED = -100
"""Torch's cross-entropy ignores positions with this label by default."""


def batch_independence(model: nn.Module, task: Task, batch: Batch, *, settings: Settings) -> Check:
    """Check that a few clips have the same loss in one batch, one by one, and in one batch with more padding.

    A clip that runs alone keeps the padding that it has in the batch. The check fails if the losses differ. It only
    warns if just the additional padding changes the loss, and the model has a layer whose output depends on padding by
    design, such as a group norm.
    """
    size = min(CLIPS, len(batch.names))
    if size < 2:
        return Check(INDEPENDENT, NOT_RUN, "the batch holds one clip")
    few = batch.part(0, size)
    part = getattr(task, "per_clip", "")
    together = loss_per_item(model, task, [few], settings=settings, part=part)
    clips = [batch.part(i, i + 1) for i in range(size)]
    alone = loss_per_item(model, task, clips, settings=settings, part=part)
    near = (TOLERANCE_BF16 if settings.precision == "bf16" else TOLERANCE) * max(abs(together), 1e-12)
    says = f"loss of {size} clips: {together:.5g} in one batch, {alone:.5g} one by one"
    if not abs(alone - together) <= near:
        return Check(INDEPENDENT, FAIL, says)
    padding = _padded_loss(model, task, few, settings)
    if isinstance(padding, str):
        why = escape(padding, 100)
        return Check(INDEPENDENT, PASS, f"{says}; with more padding, the loss cannot be computed: {why}")
    says = f"{says}, {padding:.5g} with more padding"
    if abs(padding - together) <= near:
        return Check(INDEPENDENT, PASS, says)
    seen = next((f"{kind} {escape(name)}" for name, module in model.named_modules() if (kind := _sees(module))), "")
    if seen:
        return Check(INDEPENDENT, WARN, f"{says}; in this model, padding changes the output of the {seen}, by design")
    return Check(INDEPENDENT, FAIL, says)


def _sees(module: nn.Module) -> str:
    """Return the kind of a layer, such as ``convolution``, if padding changes the layer's output for a clip; else ''.

    Many networks do not mask padding before such layers.
    """
    if isinstance(module, (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)):
        return "group norm" if isinstance(module, nn.GroupNorm) else "instance norm"
    if isinstance(module, nn.modules.conv._ConvNd) and max(module.kernel_size) > 1:
        return "convolution"
    return "bidirectional layer" if isinstance(module, nn.RNNBase) and module.bidirectional else ""


def _padded_loss(model: nn.Module, task: Task, batch: Batch, settings: Settings) -> float | str:
    """Return the loss of a batch with more padding; if this raises an error, return the error as a string."""
    try:
        part = getattr(task, "per_clip", "")
        return loss_per_item(model, task, [_padded(batch)], settings=settings, part=part)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _padded(batch: Batch) -> Batch:
    """Return the batch with zeros at the end of its inputs, which are then 1.5 times as long.

    If every position of the inputs has a label, as in a language model, the new positions get the label ``IGNORED``.
    """
    if batch.inputs.dim() < 2:
        return batch
    shape = list(batch.inputs.shape)
    shape[1] = max(1, int(shape[1] * MORE_PADDING))
    inputs = torch.cat([batch.inputs, batch.inputs.new_zeros(shape)], 1)
    if batch.labels.shape != batch.inputs.shape:
        return replace(batch, inputs=inputs)
    return replace(batch, inputs=inputs, labels=torch.cat([batch.labels, batch.labels.new_full(shape, IGNORED)], 1))
