"""What a step returns, counts and restores."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .config.settings import Settings
from .parallel.parallel_model import ParallelModel
from .state.optimizer import Optimizer
from .system.device import autocast
from .system.signals import SIGNAL_NAMES
from .tasks._task import Batch, Loss, Task

if TYPE_CHECKING:
    from .system.compiling import LossFunction

__all__ = ["BufferSnapshot", "StepResult", "gradient_step"]


class BufferSnapshot:
    """What the buffers of a model's training modules hold now.

    All of them are copied: torch's own norms change theirs without saying so (``Tensor._version`` stays).
    """

    def __init__(self, model: nn.Module) -> None:
        found = [
            (module, name, buffer)
            for module in model.modules() if module.training
            for name, buffer in module._buffers.items() if buffer is not None
        ]  # fmt: skip
        self._places = [(module, name) for module, name, _ in found]
        self._live = [buffer for _, _, buffer in found]
        self._old = [buffer.detach().clone() for buffer in self._live]

    @torch.no_grad()
    def put_back(self, bad: Tensor) -> None:
        """Let the buffers be what they were where ``bad`` (0-d) is true; a GPU is not waited for."""
        on_cpu = bad.device.type == "cpu"
        if on_cpu and not bool(bad):
            return
        for (module, name), live, old in zip(self._places, self._live, self._old, strict=True):
            now = module._buffers[name]
            if now is not None and now is not live and now.shape == live.shape:  # put in its place by the forward pass
                live.copy_(now)
            module._buffers[name] = live
            live.copy_(old if on_cpu else torch.where(bad.to(live.device), old, live))


@dataclass(frozen=True)
class StepResult:
    """What a step was like. ``loss`` and ``parts`` are per item; ``norm`` is the gradient's, before clipping.

    ``seconds`` is the sound in it; of ``room`` places in the batches ``used`` were no padding. ``too_short`` is how
    many of its ``fresh`` clips, those that the run had not seen yet, CTC can spell in no way. All of it is over all
    processes, but for ``own_places``, which are those of this one; ``stop`` is the signal that one of them heard.
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
    own_places: int = 0
    stop: str = ""

    @property
    def places(self) -> int:
        """What its operations grow with: the places in its batches, or their clips."""
        return self.room or self.clips


def gradient_step(
    spread: ParallelModel, task: Task, batches: Sequence[Batch], optimizer: Optimizer, *, settings: Settings, fresh: int = 0,
    heard: Callable[[], str] = str, loss_of: LossFunction | None = None,
) -> StepResult:  # fmt: skip
    """Take one step on one or more batches together, of whose clips the run has not seen the first ``fresh`` batches'.

    The loss is divided by the items of all batches of all processes, not each batch's by its own: batches with few
    labels would weigh too much (https://github.com/huggingface/transformers/issues/34191). Gradients are added up over
    the processes once, with the last batch. ``heard`` gives the signal that came to this one, ``loss_of`` is the task's
    loss, if compiled. Where anything is raised, the model is what it was.
    """
    kept = BufferSnapshot(spread.model)
    try:
        total, count, parts, short = _backward(spread, loss_of or task.loss, batches, settings=settings, fresh=fresh)
        said = _said(batches, fresh, heard(), parts)
        # On the CPU, and before the device is asked for anything: that would wait for one that is dead.
        spread.ranks.add([said])
        _check_parts(said[-2:], spread.ranks.size)
        spread.ranks.add([total, count, *parts.values(), *short])
        spread.collect()
    except BaseException:
        kept.put_back(torch.ones((), dtype=torch.bool))
        spread.model.zero_grad(set_to_none=True)
        raise
    share = 1 / count.clamp(min=1)
    norms = optimizer.gradient_norms()
    norm = _normalise(optimizer.parameters, norms, share * spread.of_mean, settings.clip)
    bad = ~(torch.isfinite(norm) & torch.isfinite(total))
    optimizer.step(bad, norms)
    kept.put_back(bad)
    clips, seen, used, room = map(int, said[:4].tolist())
    return StepResult(
        loss=total * share, parts={name: part * share for name, part in parts.items()}, norm=norm, bad=bad,
        clips=clips, seconds=float(said[4]), used=used, room=room, too_short=short[0] if short else None, fresh=seen,
        own_places=_places(batches)[1] or sum(len(batch.names) for batch in batches),
        stop=next((name for name, heard in zip(SIGNAL_NAMES, said[5:-2].tolist(), strict=True) if heard), ""),
    )  # fmt: skip


Backward = tuple[Tensor, Tensor, dict[str, Tensor], list[Tensor]]
"""The sums of a step over the batches of this process: its loss, its items, the parts of the loss, and of one tensor,
where something is spelled, how many clips were too short."""


def _backward(
    spread: ParallelModel, loss_of: LossFunction, batches: Sequence[Batch], *, settings: Settings, fresh: int
) -> Backward:  # fmt: skip
    """Compute the gradients of all batches, as those of one."""
    device = next(spread.model.parameters()).device
    total = torch.zeros((), device=device)
    items: int | Tensor = 0
    parts: dict[str, Tensor] = {}
    short: list[Tensor] = []
    for place, batch in enumerate(batches):
        with spread.apart() if place + 1 < len(batches) else nullcontext():
            with autocast(settings, device):
                value, loss = spread(partial(_loss, loss_of, batch.to(device)))
            value.backward()  # type: ignore[no-untyped-call]
        total = total + loss.total
        items = items + loss.items
        if loss.too_short is not None and place < fresh:
            short = [loss.too_short + (short[0] if short else 0)]
        for name, part in loss.parts.items():
            parts[name] = parts[name] + part if name in parts else part.clone()
    # A number is written on the device: copied there, it would be waited for.
    count = items.float().clone() if isinstance(items, Tensor) else torch.full((), float(items), device=device)
    return total, count, parts, short


def _loss(loss_of: LossFunction, batch: Batch, model: nn.Module) -> tuple[Tensor, Loss]:
    """Return the loss to go back from, and what is noted of it."""
    loss = loss_of(model, batch)
    parts = {name: part.detach() for name, part in loss.parts.items()}
    noted = replace(loss, total=loss.total.detach(), parts=parts)
    if not batch.idle:
        return loss.total, noted
    return torch.nan_to_num(loss.total, 0.0, 0.0, 0.0) * 0.0, _nothing_of(noted)


def _nothing_of(loss: Loss) -> Loss:
    short = None if loss.too_short is None else torch.zeros_like(loss.too_short)
    parts = {name: torch.zeros_like(part) for name, part in loss.parts.items()}
    return replace(loss, total=torch.zeros_like(loss.total), items=loss.items * 0, parts=parts, too_short=short)


def _said(batches: Sequence[Batch], fresh: int, signal: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Return clips, clips not seen before, places used and all, seconds, signals, and what parts the loss has.

    Of their names it is a number and its square: where all processes have the same, the sums say so.
    """
    clips, seen = (sum(len(batch.names) for batch in some if not batch.idle) for some in (batches, batches[:fresh]))
    used, room = _places([batch for batch in batches if not batch.idle])
    heard = [name == signal for name in SIGNAL_NAMES]
    names = zlib.crc32(" ".join(parts).encode()) % 2**20
    figures = [clips, seen, used, room, sum(batch.seconds for batch in batches), *heard, names, names**2]
    return torch.tensor(figures, dtype=torch.float64)


def _check_parts(sums: Tensor, size: int) -> None:
    """Raise ConfigError where the losses of the processes have other parts: they are added up one after the other."""
    names, squares = sums.tolist()
    if size * squares != names**2:
        raise ConfigError(
            "the losses of the processes have other parts in the same step.",
            hint="A task gives the same parts, in the same order, for every batch: 0 where there is nothing of one.",
        )


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
