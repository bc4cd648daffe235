"""One step: batches in, gradients normalised by all their items, clipped, applied.

Nothing here waits for a GPU, and no loss of ours does, but for what it calls: torch's ``ctc_loss`` fetches the lengths
itself, and transformers looks whether a mask (of a model with layer norm) hides anything, where it is not compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .buffers import Kept
from .device import autocast
from .optimizing import Optimizer
from .settings import Settings
from .tasks._task import Batch, Task

if TYPE_CHECKING:
    from .compiling import LossOf

__all__ = ["Stepped", "take_step"]


@dataclass(frozen=True)
class Stepped:
    """What a step was like. ``loss`` and ``parts`` are per item; ``norm`` is the gradient's, before clipping.

    ``seconds`` is the sound in it; of ``room`` places in the batches ``used`` were no padding. ``too_short`` is how
    many of its ``fresh`` clips, those that the run had not seen yet, CTC can spell in no way.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    norm: Tensor
    bad: Tensor
    clips: int
    seconds: float
    used: int
    room: int
    too_short: Tensor | None = None
    fresh: int = 0

    @property
    def places(self) -> int:
        """What its operations grow with: the places in its batches, or their clips."""
        return self.room or self.clips


def take_step(
    model: nn.Module, task: Task, batches: Sequence[Batch], optimizer: Optimizer, *, settings: Settings,
    fresh: int = 0, loss_of: LossOf | None = None,
) -> Stepped:  # fmt: skip
    """Take one step on one or more batches together, of whose clips the run has not seen the first ``fresh`` batches'.

    The loss is divided by the items of all batches, not each batch's by its own: batches with few labels would weigh
    too much (https://github.com/huggingface/transformers/issues/34191). ``loss_of`` is the task's loss, if compiled.
    """
    device = next(model.parameters()).device
    kept = Kept(model)
    total: Tensor | None = None
    items: int | Tensor = 0
    parts: dict[str, Tensor] = {}
    short: list[Tensor] = []
    for place, batch in enumerate(batches):
        with autocast(settings, device):
            loss = (loss_of or task.loss)(model, batch.to(device))
        loss.total.backward()  # type: ignore[no-untyped-call]
        value = loss.total.detach()
        total = value if total is None else total + value
        items = items + loss.items
        if loss.too_short is not None and place < fresh:
            short.append(loss.too_short)
        for name, part in loss.parts.items():
            parts[name] = parts[name] + part.detach() if name in parts else part.detach()
    assert total is not None
    # A number is written on the device: copied there, it would be waited for.
    counted = items if isinstance(items, Tensor) else torch.full((), float(items), device=device)
    share = 1 / counted.float().clamp(min=1)
    norms = optimizer.gradient_norms()
    norm = _normalise(optimizer.parameters, norms, share, settings.clip)
    bad = ~(torch.isfinite(norm) & torch.isfinite(total))
    optimizer.step(bad, norms)
    kept.put_back(bad)
    used, room = _places(batches)
    return Stepped(
        loss=total * share, parts={name: part * share for name, part in parts.items()}, norm=norm, bad=bad,
        clips=sum(len(batch.names) for batch in batches), seconds=sum(batch.seconds for batch in batches),
        used=used, room=room, too_short=torch.stack(short).sum() if short else None,
        fresh=sum(len(batch.names) for batch in batches[:fresh]),
    )  # fmt: skip


@torch.no_grad()
def _normalise(parameters: Sequence[nn.Parameter], norms: Tensor, share: Tensor, clip: float | None) -> Tensor:
    """Multiply the gradients by ``share``, and by less where their norm is above ``clip``; return that norm."""
    norm: Tensor = torch.linalg.vector_norm(norms) * share
    factor = share * (clip / (norm + 1e-6)).clamp(max=1) if clip is not None else share
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
    return norm


def _places(batches: Sequence[Batch]) -> tuple[int, int]:
    used = sum(int(batch.lengths.sum()) for batch in batches)
    return used, sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches if batch.inputs.dim() > 1)
