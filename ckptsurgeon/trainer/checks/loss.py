"""Checks of the loss: it begins near that of uniform outputs, training lowers it, padding does not change it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn

from ...util.text import apart, count, escape, percent, percent_number
from ..config.settings import Settings
from ..data.source import first_batch
from ..evaluation import loss_per_item, uniform_loss
from ..folder.run_folder import RunFolder
from ..log import LOG_FILE as LOG
from ..log import read_log
from ..state.training_state import TrainingState
from ..tasks._task import Batch, Task
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["LOSS_FELL", "MIN_STEPS", "LossDrop", "batch_independence", "first_loss", "loss_drop", "loss_fell"]


MIN_STEPS = 6
"""With fewer steps, the check cannot distinguish a fall of the loss from noise: it would compare fewer than 3 steps."""
SHARE = 10
"""A run is cut into this many equal parts; the mean losses of the first and the last part are compared."""
ERRORS = 2.0
"""A fall of more standard errors than this is significant; chance alone causes such a fall in 1 of 20 to 40 runs."""
ROUNDED = 1e-3
"""A fall by a smaller share of the loss than this may come from rounding in half precision."""
OF_NORMAL = 0.6745 * math.sqrt(2)
"""The median absolute difference between two values of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class LossDrop:
    """The fall of the loss: the mean loss of the first ``steps`` steps, and of the last ``steps`` steps.

    ``noise`` is the largest fall that may be due to chance.
    """

    first: float
    last: float
    noise: float
    steps: int

    @property
    def is_clear(self) -> bool:
        """Whether the loss fell by more than ``noise``."""
        return self.first - self.last > self.noise


def loss_drop(losses: Sequence[float]) -> LossDrop | None:
    """Return the fall of the losses from their first tenth to their last tenth; None if there are too few losses.

    The noise is two standard errors of the difference between the two means, but at least ``ROUNDED`` of the loss. The
    standard deviation of a step's loss is estimated from the median difference of neighbouring steps, because a steady
    fall or a steep beginning hardly changes this median.
    """
    if len(losses) < MIN_STEPS:
        return None
    steps = max(MIN_STEPS // 2, len(losses) // SHARE)
    deviation = statistics.median(abs(after - before) for before, after in pairwise(losses)) / OF_NORMAL
    first, last = (sum(part) / steps for part in (losses[:steps], losses[-steps:]))
    noise = ERRORS * deviation * math.sqrt(2 / steps)
    return LossDrop(first, last, max(noise, ROUNDED * abs(first)), steps)


LOSS_FELL = "loss fell"
ABOVE = 1.02
"""A loss is clearly higher than another loss if it is more than this factor times the other."""
RISEN = 1.25
"""The check warns if training raised the loss on the first batch by more than this factor."""


def loss_fell(state: TrainingState, folder: RunFolder | None) -> Check:
    """Check that training lowered the loss.

    The loss of the trained model on the first batch is compared with two losses: of the untrained model on the same
    batch, and of uniform outputs. Then the logged losses of the last steps are compared with the losses of the first
    steps: the last losses must be lower by more than the noise.
    """
    progress, job = state.progress, state.job
    if not progress.step:
        return Check(LOSS_FELL, NOT_RUN, "no step was taken")
    batch = first_batch(job.train, job.settings.seed)
    last = loss_per_item(state.model, job.task, [batch], settings=job.settings)
    uniform = uniform_loss(state.model, job.task, batch, settings=job.settings)
    first = progress.first_loss
    says = f"{' to '.join(apart(math.nan if first is None else first, last))} on the first batch"
    bounds = [one for one in (first, uniform) if one is not None and math.isfinite(one) and one > 0]
    if uniform is not None and math.isfinite(uniform) and uniform > 0:
        says += f", {uniform:.3g} with uniform outputs"
    if not math.isfinite(last):
        return Check(LOSS_FELL, FAIL, says)
    if bounds and last > ABOVE * max(bounds):
        return Check(LOSS_FELL, FAIL, f"{says}: the loss diverged; try a smaller train.lr or a longer train.warmup")
    if first is not None and last > RISEN * first:
        return Check(LOSS_FELL, WARN, f"{says}: the loss rose")
    return _beyond_noise(_step_losses(folder), says)


def _step_losses(folder: RunFolder | None) -> list[float]:
    """Return the losses of the logged steps in ``folder``, without losses that were not finite."""
    rows = read_log(folder.of(LOG)) if folder is not None else []
    return [row["loss"] for row in rows if isinstance(row.get("loss"), float)]


def _beyond_noise(losses: Sequence[float], says: str) -> Check:
    fall = loss_drop(losses)
    if fall is None:
        few = f"{count(len(losses), 'step')}; noise hides a fall in fewer than {MIN_STEPS} steps"
        return Check(LOSS_FELL, NOT_RUN, f"{says}; {few}")
    if fall.is_clear:
        return Check(LOSS_FELL, PASS, says)
    first, last = apart(fall.first, fall.last)
    ends = f"mean loss {first} to {last} over the first and last {fall.steps} steps, noise {fall.noise:.2g}"
    return Check(LOSS_FELL, WARN, f"{says}; {ends}: the loss did not fall by more than the noise")


TOLERANCE = 0.25
"""The check warns if the first loss differs from the loss of uniform outputs by more than this share of that loss."""


def first_loss(model: nn.Module, task: Task, batch: Batch, *, settings: Settings, drawn: bool) -> Check:
    """Compare the loss before the first step with the loss that the task computes for uniform outputs.

    For CTC over V tokens, the loss of uniform outputs is not ln V, because CTC sums over alignments: in an example, it
    is 7.64 per label, and ln V is 3.33. ``drawn`` is true if some weights are newly initialised. If none are, the model
    is already trained, and a loss below the loss of uniform outputs is good.
    """
    name = "first loss"
    found = loss_per_item(model, task, [batch], settings=settings)
    if not math.isfinite(found):
        return Check(name, FAIL, f"{found}")
    uniform = uniform_loss(model, task, batch, settings=settings)
    if uniform is None:
        return Check(
            name,
            NOT_RUN,
            f"{found:.3g}; the task has no method uniform_loss, so there is nothing to compare this loss with",
        )
    if not math.isfinite(uniform) or uniform <= 0:
        return Check(name, PASS, f"{found:.3g}; the loss of uniform outputs ({uniform:.3g}) cannot be compared with it")
    share = found / uniform - 1
    said, wanted = apart(found, uniform)
    says = f"{said}, {_compared(share)} the {wanted} of uniform outputs"
    if share < -TOLERANCE and not drawn:
        return Check(name, PASS, f"{says}: no weight of the model is new")
    return Check(name, WARN if abs(share) > TOLERANCE else PASS, says)


def _compared(share: float) -> str:
    """Return a text for a relative difference (0.32): ``32 % more than``, ``<1 % less than`` or ``the same as``."""
    return f"{percent(abs(share))} {'more' if share > 0 else 'less'} than" if share else "the same as"


INDEPENDENT = "independent of batch and padding"
CLIPS = 4
SAME, SAME_BF16 = 1e-3, 3e-2
"""Losses count as equal if their relative difference is at most ``SAME`` (in a bf16 run: ``SAME_BF16``)."""
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
    share = SAME_BF16 if settings.precision == "bf16" else SAME
    near, equal = share * max(abs(together), 1e-12), f" (equal within {percent_number(share)} %)"
    says = f"loss of {size} clips: {together:.5g} in one batch, {alone:.5g} one by one"
    if not abs(alone - together) <= near:
        return Check(INDEPENDENT, FAIL, says)
    padding = _padded_loss(model, task, few, settings)
    if isinstance(padding, str):
        why = escape(padding, 100)
        return Check(INDEPENDENT, PASS, f"{says}; with more padding, the loss cannot be computed: {why}")
    says = f"{says}, {padding:.5g} with more padding"
    if abs(padding - together) <= near:
        return Check(INDEPENDENT, PASS, f"{says}{equal}")
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
