"""What a task is: what a model is given, what it is asked, and how well it answers. One file of this folder each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config.settings import Settings
    from ..data.sound import Clip

__all__ = ["Batch", "Loss", "Progress", "Task", "is_higher_better"]

Progress = Callable[[str, int, int], None]
"""Is told of a split how many of its clips are done, and how many there are."""


@dataclass(frozen=True)
class Batch:
    """Examples put together, padded to the longest.

    ``inputs`` is (batch, time) or (batch, time, features), ``lengths`` how much of each is no padding; ``labels`` and
    ``label_lengths`` likewise, of what is to be answered. ``seconds`` is the sound in it. ``names`` say where each
    example is written. ``extras`` are what else a task wants, each with an entry for every example.
    ``idle``: of several processes this one has nothing to do, and nothing of what it does counts.
    """

    inputs: Tensor
    lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    seconds: float
    names: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    idle: bool = False

    def to(self, device: Any) -> Batch:
        """Return the batch on a device."""
        return self._each(lambda one: one.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU copies from while it works; a loader calls this."""
        return self._each(lambda one: one.pin_memory())

    def part(self, first: int, last: int) -> Batch:
        """Return some of its examples, padded as they are in it."""
        return replace(self._each(lambda one: one[first:last]), names=self.names[first:last])

    def strided(self, first: int, step: int) -> Batch:
        """Return every ``step``-th of its examples, padded as they are; its first one, idle, where none is left."""
        names = self.names[first::step]
        if not names:
            return replace(self.part(0, 1), seconds=0.0, idle=True)
        seconds = self.seconds * len(names) / len(self.names)
        return replace(self._each(lambda one: one[first::step]), names=names, seconds=seconds)

    def with_extras(self, extras: Mapping[str, Tensor]) -> Batch:
        """Return the batch with more that belongs to it."""
        return replace(self, extras={**self.extras, **extras})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.inputs), change(self.lengths), change(self.labels), change(self.label_lengths), self.seconds,
            self.names, {name: change(one) for name, one in self.extras.items()}, self.idle,
        )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over ``items`` (labels, frames, examples), so that it can be divided by those of many batches.

    ``items`` may be a tensor (0-d): to make a number of it would wait for the device. ``parts`` are its sums by name,
    for the log. ``too_short`` is how many clips CTC can spell in no way, after whatever the model takes off their
    lengths; None where nothing is spelled.
    """

    total: Tensor
    items: int | Tensor
    parts: Mapping[str, Tensor]
    too_short: Tensor | None = None


class Task(Protocol):
    """A task. One module of this folder offers one as ``TASK``, a class that takes the settings and the token list.

    ``metric`` is the figure that says which model is best. One that has an attribute ``higher`` names in it the figures
    that are better when they are higher; all others are when lower.

    Some have more. ``meet(model)`` is called once, before there are data, with the model on the meta device, for what
    of it the data depend on. ``begin_step(model, step)`` is called before each step of training. ``per_clip`` names the
    part of the loss that is a sum over clips, where the whole of it is not. ``collapsed(parts)`` says why nothing more
    can come of a run whose steps have such parts per item, '' where something can; ``doubts(figures)`` what is too
    little of an evaluation's figures. ``static`` says that the shapes of a batch follow from its longest clip alone.
    """

    metric: str

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None: ...

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ConfigError for a clip that cannot be learned from: a letter that no token is, with file and line."""
        ...

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return what one clip becomes: ``input`` (time, …) and ``label`` tensors."""
        ...

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Return a batch of examples."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its items."""
        ...

    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per item of a model whose outputs are all the same."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return figures over a whole split: ``loss``, the metric, and others."""
        ...


def is_higher_better(task: Task, figure: str) -> bool:
    """Whether a figure of a task is better when higher; a task of a user's own need not say so."""
    return figure in getattr(task, "higher", ())
