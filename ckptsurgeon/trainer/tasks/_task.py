"""What a task is: the batches that a model gets, its loss, and its figures. Each task is one file of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..config.settings import Settings
    from ..data.sound import Clip

__all__ = ["Batch", "ClipTask", "Loss", "Progress", "Task", "begin_step", "is_higher_better"]

Progress = Callable[[str, int, int], None]
"""A function that gets a split, how many of its clips are done, and how many there are."""


@dataclass(frozen=True)
class Batch:
    """A batch of examples, padded to the longest of them.

    ``inputs`` is (batch, time) or (batch, time, features), ``lengths`` (batch,) is how much of each is not padding;
    ``labels`` and ``label_lengths`` are the same for the right answers. ``seconds`` is the total length of the sounds.
    ``names`` are the places (file and line) of the examples. ``extras`` are more tensors that a task needs, each with
    an entry for every example. ``idle`` is whether this rank has no example of its own in this step, so that nothing
    that it computes may count. ``on_cpu`` are the lengths and label lengths that a batch on a GPU has on the CPU, too.
    """

    inputs: Tensor
    lengths: Tensor
    labels: Tensor
    label_lengths: Tensor
    seconds: float
    names: tuple[str, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    idle: bool = False
    on_cpu: tuple[Tensor, Tensor] | None = None

    @property
    def cpu_lengths(self) -> Tensor:
        """The lengths on the CPU, even if the batch is on a GPU; reading them then does not wait for the GPU."""
        return self.lengths.cpu() if self.on_cpu is None else self.on_cpu[0]

    @property
    def cpu_label_lengths(self) -> Tensor:
        """The label lengths on the CPU, even if the batch is on a GPU."""
        return self.label_lengths.cpu() if self.on_cpu is None else self.on_cpu[1]

    @property
    def is_padded(self) -> bool:
        """Whether some example has padding; this reads the lengths on the CPU."""
        return bool((self.cpu_lengths < self.inputs.shape[1]).any())

    def to(self, device: Any) -> Batch:
        """Return the batch with its tensors on a device, and with the lengths on the CPU, too."""
        kept = (self.lengths, self.label_lengths) if self.lengths.device.type == "cpu" else self.on_cpu
        return replace(self._each(lambda one: one.to(device, non_blocking=True)), on_cpu=kept)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, which a GPU copies from while it computes; torch's loader calls this."""
        return self._each(lambda one: one.pin_memory())

    def part(self, first: int, last: int) -> Batch:
        """Return the examples from ``first`` up to ``last``, padded as they are in the batch."""
        return replace(self._each(lambda one: one[first:last]), names=self.names[first:last])

    def strided(self, first: int, step: int) -> Batch:
        """Return the batch of every ``step``-th example from ``first`` on, padded as in this batch.

        If there is no such example, it has the first example of this batch, and is marked ``idle``.
        """
        names = self.names[first::step]
        if not names:
            return replace(self.part(0, 1), seconds=0.0, idle=True)
        seconds = self.seconds * len(names) / len(self.names)
        return replace(self._each(lambda one: one[first::step]), names=names, seconds=seconds)

    def with_extras(self, extras: Mapping[str, Tensor]) -> Batch:
        """Return the batch with further tensors in ``extras``, by name."""
        return replace(self, extras={**self.extras, **extras})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            change(self.inputs), change(self.lengths), change(self.labels), change(self.label_lengths), self.seconds,
            self.names, {name: change(one) for name, one in self.extras.items()}, self.idle,
        )  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over ``items`` (labels, frames, examples), to be divided by the items of all batches of a step.

    ``items`` may be a 0-d tensor: making a number of it would wait for the device. ``parts`` are sums by name, for the
    log. ``too_short`` is the number of clips with fewer frames, as the model counts them, than CTC needs for their
    labels; None if the task does not use CTC.
    """

    total: Tensor
    items: int | Tensor
    parts: Mapping[str, Tensor]
    too_short: Tensor | None = None


class Task(Protocol):
    """A task: a class that takes the settings and the token list. One module of this folder offers one as ``TASK``.

    ``metric`` is the figure that decides which model is best: the lowest, or the highest for figures that an optional
    attribute ``higher`` names. A task has these members, and any of the optional ones that it needs (None is as good
    as leaving one out):

    - ``splits()`` returns the sources ``train``, ``dev`` and ``test`` by name; ``notes()`` lines on them for the user;
      ``prepare(progress)`` fills caches for ``--preprocess-only`` and returns lines on that.
    - ``meet(model)`` is called once, before there are data, with the model on the meta device, if the data depend on
      it; ``begin_step(model, step)`` before each step of training.
    - ``uniform_loss(model, batch)`` returns the loss per item of a model whose outputs are all the same: the checks
      compare the first loss and the last with it.
    - ``per_clip`` names the part of the loss that is a sum over clips, if the whole of it is not; ``gradient_band`` is
      the lowest and highest mean gradient norm of healthy runs; ``static`` says that the shapes of a batch follow from
      its longest clip alone, so that it can be compiled; ``by_blocks`` that the loss computes on the CPU, too, so that
      only the blocks of a model are to be compiled.
    - ``measure(model, batch)`` returns a row of plain data on each example, and ``figures(rows)`` the figures over the
      rows of many: then several processes share an evaluation, and rows with a ``clip``, a ``reference`` and a
      ``hypothesis`` are kept for the user.
    - ``read(model, batch)`` returns the text of each example, for ``ckpt transcribe``; one with ``measure`` needs none.
    - ``collapsed(parts)`` returns why a run whose step had these parts per item cannot learn any more, or '';
      ``doubts(figures)`` returns what is too low in the figures of an evaluation, '' if nothing is.
    """

    metric: str

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None: ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its items."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return measures of a whole split by name: ``loss``, the task's metric, and others."""
        ...


class ClipTask(Task, Protocol):
    """A task with batches of clips from manifests, or of examples from a dataset; ``Batches`` makes them."""

    def example(self, clip: Clip) -> dict[str, Any]:
        """Return the tensors of one clip: ``input`` (time, …) and ``label``."""
        ...

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Return a batch of examples, each of them a dict that ``example`` returned."""
        ...


def begin_step(task: Task, model: nn.Module, step: int) -> None:
    """Call the task's method ``begin_step``, if it has one, before step ``step`` (0-based)."""
    function = getattr(task, "begin_step", None)
    if function is not None:
        function(model, step)


def is_higher_better(task: Task, figure: str) -> bool:
    """Whether a higher value of a figure is better, as the task's attribute ``higher`` says."""
    return figure in (getattr(task, "higher", None) or ())
