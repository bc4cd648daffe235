"""Defines the interface of a task: its batches, loss, metrics and errors. Each task is one file of this folder."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError
from ...util.text import escape
from ..parallel.lost_ranks import is_communication_error

if TYPE_CHECKING:
    from ..config.settings import Settings
    from ..data.sound import Clip

__all__ = [
    "USERS",
    "Batch",
    "ClipTask",
    "Loss",
    "LossSums",
    "Progress",
    "Task",
    "begin_step",
    "explain_task_errors",
    "is_higher_better",
    "is_user_task",
    "places",
    "task_file",
]

USERS = "ckptsurgeon_users_task"
"""The name of the module with a user's own task."""

Progress = Callable[[str, int, int], None]
"""A function that gets the name of a split, the number of finished clips, and the number of all clips."""


@dataclass(frozen=True)
class Batch:
    """A batch of examples, padded to the length of the longest example.

    ``inputs`` is (batch, time) or (batch, time, features), and ``lengths`` (batch,) are the lengths without padding.
    ``labels`` are the targets, (batch, length) or (batch,), and ``label_lengths`` (batch,) are their lengths.
    ``seconds`` is the total length of the sounds. ``names`` are the positions (file and line) of the examples in
    manifests. ``extras`` are further tensors that a task needs, by name, with the batch as their first dimension.
    ``idle`` is true if this rank has no example in this step; the batch is then a stand-in, and its results must be
    ignored. ``on_cpu`` are ``lengths`` and ``label_lengths`` on the CPU, for a batch on a GPU.
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
        """Return the batch on a device; copies of the lengths stay on the CPU."""
        kept = (self.lengths, self.label_lengths) if self.lengths.device.type == "cpu" else self.on_cpu
        return replace(self._each(lambda one: one.to(device, non_blocking=True)), on_cpu=kept)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, from which a GPU copies while it computes; DataLoader calls this."""
        return self._each(lambda one: one.pin_memory())

    def part(self, first: int, last: int) -> Batch:
        """Return a batch of the examples from index ``first`` up to ``last`` (exclusive), padded as in this batch.

        ``seconds`` stays the total of this batch.
        """
        return replace(self._each(lambda one: one[first:last]), names=self.names[first:last])

    def strided(self, first: int, step: int) -> Batch:
        """Return the batch of every ``step``-th example from ``first`` on, padded as in this batch.

        If there is no such example, return a batch of the first example of this batch, marked as ``idle``.
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


def places(batches: Sequence[Batch]) -> tuple[int, int]:
    """Return the number of time steps in ``batches``, without padding and with padding."""
    used = sum(int(batch.lengths.sum()) for batch in batches)
    return used, sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in batches if batch.inputs.dim() > 1)


@dataclass(frozen=True)
class Loss:
    """The sum of a loss over ``items`` items (labels, frames or examples).

    A training step divides the sum over all batches by the number of all items.

    ``items`` may be a 0-d tensor, because converting it to a number would wait for the device. ``parts`` are sums of
    parts of the loss and of metrics, by name, for the log. ``too_short`` is the number of clips for which the model
    makes fewer frames than CTC needs for their labels; None if the task does not use CTC.
    """

    total: Tensor
    items: int | Tensor
    parts: Mapping[str, Tensor]
    too_short: Tensor | None = None

    def detached(self) -> Loss:
        """Return the loss without its autograd graph, for sums and the log."""
        parts = {name: part.detach() for name, part in self.parts.items()}
        return replace(self, total=self.total.detach(), parts=parts)

    def without_effect(self) -> tuple[Tensor, Loss]:
        """Return the total of the loss times 0, for the backward pass, and a loss in which all sums and items are 0.

        Every rank must take part in the all-reduce. So a rank without clips in this step runs a clip of another rank,
        and this function keeps the clip from counting twice. ``nan_to_num`` is needed because 0 times NaN is NaN.
        """
        short = None if self.too_short is None else torch.zeros_like(self.too_short)
        parts = {name: torch.zeros_like(part.detach()) for name, part in self.parts.items()}
        nothing = replace(
            self, total=torch.zeros_like(self.total.detach()), items=self.items * 0, parts=parts, too_short=short
        )
        return torch.nan_to_num(self.total, 0.0, 0.0, 0.0) * 0.0, nothing


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


class Task(Protocol):
    """A task: a class that is called with the settings and the token list. A module of this folder has it as ``TASK``.

    ``metric`` is the name of the metric that decides which model is best: the one with the lowest value, or with the
    highest if the optional attribute ``higher`` lists the metric. These members are optional, too (None means that the
    task does not have the member):

    - ``splits()`` returns the batch sources ``train``, ``dev`` and ``test`` by name; ``notes()`` returns lines about
      them for the user; ``prepare(progress)`` fills caches for ``--preprocess-only``, and returns lines
      about the caches for the user.
    - ``meet(model)`` is called once, before data are read, with the model on the meta device: a task whose data depend
      on the model needs it. ``begin_step(model, step)`` is called before each training step.
    - ``uniform_loss(model, batch)`` returns the loss per item of a model for which all answers are equally likely: the
      checks compare the first and the last loss with it.
    - ``per_clip`` is the name of the part of the loss that is a sum over clips, if the whole loss is not.
      ``gradient_band`` is the lowest and the highest mean gradient norm of healthy runs. ``static`` is true if the
      shapes of a batch depend only on its longest clip, so that the loss can be compiled. ``by_blocks`` is true if
      torch.compile can compile the blocks of the model, but not the loss, because the loss also computes on the CPU.
    - ``measure(model, batch)`` returns a row (a dict of plain data) for each example, and ``figures(rows)`` returns the
      metrics over many rows. With these two methods, several processes share an evaluation, and rows with a ``clip``, a
      ``reference`` and a ``hypothesis`` are saved for the user.
    - ``read(model, batch)`` returns the text of each example, for ``ckpt transcribe``; not needed with ``measure``.
    - ``collapsed(parts)`` gets the parts of a step's loss per item, and returns why the run cannot learn any more, or
      ''. ``doubts(figures)`` returns which metrics of an evaluation are too low, or ''.
    """

    metric: str

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None: ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its items (labels, frames or examples)."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the metrics over all batches of a split by name: ``loss``, the task's ``metric``, and others."""
        ...


class ClipTask(Task, Protocol):
    """A task whose batches are made by the class ``Batches``, from clips of manifests or examples of a dataset."""

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
    """Return whether a higher value of a metric is better, by the task's attribute ``higher``."""
    return figure in (getattr(task, "higher", None) or ())


def task_file(name: str, folder: str) -> str:
    """Return the file's path in a name such as ``my_task.py:MyTask``, joined to ``folder``; '' for a bundled task."""
    path, between, _ = name.rpartition(":")
    return os.path.normpath(os.path.join(folder, path)) if between else ""


def is_user_task(task: object) -> bool:
    """Return whether the class of a task is in a user's file."""
    return type(task).__module__ == USERS


@contextmanager
def explain_task_errors(name: str, *, there: bool = False) -> Iterator[None]:
    """If a user's own task raises an error in the block, raise a ConfigError with the line of the error in its place.

    ``name`` is the name of the task, such as ``my_task.py:MyTask``. Errors of bundled tasks are not changed. If
    ``there`` is true, only errors that were raised in the user's file are changed: in a training step, other errors may
    come from the model.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):  # explain_out_of_memory handles the second
        raise
    except Exception as error:
        if ":" not in name or is_communication_error(error) or (there and not _where(error, name)):
            raise
        raise ConfigError(
            f"the task {escape(name)} fails{_where(error, name)}: {type(error).__name__}: {escape(str(error), 500)}.",
            hint="Correct the task: CKPT_DEBUG=1 shows the traceback. ckpt creates a task by MyTask(settings, tokens).",
        ) from error


def _where(error: Exception, name: str) -> str:
    """Return `` in line N``, the line of the user's file that raised the error; '' if it is not from this file."""
    file = os.path.basename(name.rpartition(":")[0])
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if os.path.basename(one.filename) == file]
    return f" in line {lines[-1]}" if lines else ""
