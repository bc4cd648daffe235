"""The counts, sums and result of one step, and the buffers that are restored if the step is skipped."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .parallel.ranks import Ranks
from .system.signals import SIGNAL_NAMES
from .tasks._task import Batch, Loss

__all__ = ["BufferSnapshot", "LossSums", "StepCounts", "StepResult", "detached", "without_effect"]


@dataclass(frozen=True)
class StepCounts:
    """Counts of one step over all ranks. They are on the CPU, so that reading them never waits for a GPU.

    ``clips`` is the number of clips, ``unseen_clips`` the number of clips that the run had not seen before, and
    ``seconds`` the total length of the clips. ``room`` is the number of time steps in the batches with padding,
    ``used`` the number of time steps without padding. ``signal`` is the name of a signal that a rank received, or ''.
    """

    clips: int
    unseen_clips: int
    used: int
    room: int
    seconds: float
    signal: str = ""

    @staticmethod
    def of_all(
        ranks: Ranks, batches: Sequence[Batch], unseen: int, signal: str, parts: Mapping[str, Tensor]
    ) -> StepCounts:
        """Return the counts of all ranks together; every rank must call this.

        The first ``unseen`` of the ``batches`` have clips that the run has not seen before. Raises ConfigError if the
        losses of the ranks have different ``parts``.
        """
        packed = StepCounts.pack(batches, unseen, signal, parts)
        ranks.all_reduce([packed])
        return StepCounts.unpack(packed, ranks.size)

    @staticmethod
    def pack(batches: Sequence[Batch], unseen: int, signal: str, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the counts of this rank as one float64 tensor, to be summed over the ranks.

        The tensor also has a hash of the names in ``parts``, and the square of the hash. The sums of both over the
        ranks show whether all ranks have the same hash, and so whether all losses have the same parts.
        """
        counted = [batch for batch in batches if not batch.idle]
        clips = sum(len(batch.names) for batch in counted)
        unseen_clips = sum(len(batch.names) for batch in batches[:unseen] if not batch.idle)
        used, room = places(counted)
        names = zlib.crc32(" ".join(parts).encode()) % 2**20
        received = [name == signal for name in SIGNAL_NAMES]
        seconds = sum(batch.seconds for batch in batches)
        return torch.tensor(
            [clips, unseen_clips, used, room, seconds, *received, names, names**2], dtype=torch.float64
        )  # fmt: skip

    @staticmethod
    def unpack(sums: Tensor, ranks: int) -> StepCounts:
        """Return the counts of all ``ranks`` ranks together; ``sums`` is the sum of the tensors that ``pack`` returned.

        Raises ConfigError if the losses of the ranks have different parts. Parts are summed in their order, so
        different parts would be added to each other.
        """
        clips, unseen_clips, used, room, seconds, *received, names, squares = sums.tolist()
        if ranks * squares != names**2:  # equal only if every rank sent the same number
            raise ConfigError(
                "the losses of the processes have different parts in the same step.",
                hint="Let the task return the same parts in the same order for every batch, with 0 for an empty part.",
            )
        signal = next((name for name, count in zip(SIGNAL_NAMES, received, strict=True) if count), "")
        return StepCounts(int(clips), int(unseen_clips), int(used), int(room), seconds, signal)


@dataclass(frozen=True)
class StepResult:
    """The result of one step: ``loss`` and ``parts`` per item, ``grad_norm`` before clipping, and counts.

    ``is_skipped`` is true if the step was skipped because a value was not finite. ``too_short`` is the number of clips
    with too few frames for CTC. These tensors stay on the device until the log fetches them. ``own_places`` is the
    number of time steps in the padded batches of this rank, or the number of clips if inputs have no time axis.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    grad_norm: Tensor
    is_skipped: Tensor
    counts: StepCounts
    too_short: Tensor | None = None
    own_places: int = 0

    @property
    def places(self) -> int:
        """The number of time steps of all clips, with padding; if inputs have no time axis, the number of clips."""
        return self.counts.room or self.counts.clips


@dataclass
class LossSums:
    """Sums over the batches of a step, on the device: of the losses, of the numbers of items, and of each part.

    ``Ranks.all_reduce`` turns these sums into sums over all ranks.
    """

    device: torch.device
    total: Tensor = field(init=False)
    items: int | Tensor = 0
    parts: dict[str, Tensor] = field(default_factory=dict)
    too_short: list[Tensor] = field(default_factory=list)
    """A list of one tensor; empty if the task does not use CTC."""

    def __post_init__(self) -> None:
        self.total = torch.zeros((), device=self.device)

    def add(self, loss: Loss, *, unseen: bool) -> None:
        """Add the loss of a batch; clips that are too short for CTC are only counted in an ``unseen`` batch.

        A batch is unseen if the run has not seen its clips before.
        """
        self.total = self.total + loss.total
        self.items = self.items + loss.items
        if loss.too_short is not None and unseen:
            self.too_short = [loss.too_short + (self.too_short[0] if self.too_short else 0)]
        for name, part in loss.parts.items():
            self.parts[name] = self.parts[name] + part if name in self.parts else part.clone()

    def item_count(self) -> Tensor:
        """Return the number of items as a new 0-d tensor on the device."""
        if isinstance(self.items, Tensor):
            return self.items.float().clone()
        # torch.full writes the number on the device; the CPU would wait for a copy to the device.
        return torch.full((), float(self.items), device=self.device)


class BufferSnapshot:
    """A copy of the buffers of all modules in training mode, such as the statistics of batch norms.

    All of these buffers are copied, because ``Tensor._version`` does not tell which buffers have changed: torch's norm
    layers do not increase this number.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [
            (module, name, buffer)
            for module in model.modules() if module.training
            for name, buffer in module._buffers.items() if buffer is not None
        ]  # fmt: skip
        self._owners = [(module, name) for module, name, _ in found]
        self._live = [buffer for _, _, buffer in found]
        self._saved = [buffer.detach().clone() for buffer in self._live]

    @torch.no_grad()
    def restore_if(self, condition: Tensor) -> None:
        """Restore the buffers if ``condition`` (0-d) is true; it is not read from a GPU, because the CPU would wait."""
        on_cpu = condition.device.type == "cpu"
        if on_cpu and not bool(condition):
            return
        for (module, name), live, saved in zip(self._owners, self._live, self._saved, strict=True):
            now = module._buffers[name]
            if now is not None and now is not live and now.shape == live.shape:  # the forward pass replaced the tensor
                live.copy_(now)
            module._buffers[name] = live
            live.copy_(saved if on_cpu else torch.where(condition.to(live.device), saved, live))


def detached(loss: Loss) -> Loss:
    """Return a loss without its autograd graph, for sums and the log."""
    parts = {name: part.detach() for name, part in loss.parts.items()}
    return replace(loss, total=loss.total.detach(), parts=parts)


def without_effect(loss: Loss) -> tuple[Tensor, Loss]:
    """Return the total of a loss times 0, for the backward pass, and a loss in which all sums and items are 0.

    Every rank must take part in the all-reduce. So a rank without clips in this step runs a clip of another rank, and
    this function keeps the clip from counting twice. ``nan_to_num`` is needed because 0 times NaN is NaN.
    """
    nothing = detached(loss)
    short = None if loss.too_short is None else torch.zeros_like(loss.too_short)
    parts = {name: torch.zeros_like(part) for name, part in nothing.parts.items()}
    nothing = replace(
        nothing, total=torch.zeros_like(nothing.total), items=loss.items * 0, parts=parts, too_short=short
    )  # fmt: skip
    return torch.nan_to_num(loss.total, 0.0, 0.0, 0.0) * 0.0, nothing


def places(batches: Sequence[Batch]) -> tuple[int, int]:
    """Return the number of time steps in ``batches``, without padding and with padding."""
    used = sum(int(batch.lengths.sum()) for batch in batches)
    return used, sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches if batch.inputs.dim() > 1)
