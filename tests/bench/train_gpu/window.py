"""The steps that are timed: from the beginning of one step to the beginning of another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Window"]


def _nothing(*_: Any) -> None:
    pass


@dataclass
class Window:
    """Times ``steps`` steps in each of ``turns`` turns; a loop calls ``begin`` when a step begins and ``end`` when it is done.

    ``warm_up`` steps come first. At the beginning of a turn ``wait`` is called, which returns when it is this loop's turn;
    then come ``settle`` steps that use up the batches made meanwhile, then the timed ones, then ``tell`` is called with the
    window. The clock starts where a step begins and stops where the step after the last one begins, so that what a loop
    does between two steps is timed, and what it does before and after its last step (a checkpoint, say) is not. On a GPU
    it waits, at both ends, for what the GPU was given to do.
    """

    device: Any
    warm_up: int
    steps: int
    settle: int = 0
    turns: int = 1
    wait: Callable[[], None] = _nothing
    tell: Callable[[Any], None] = _nothing
    begun: int = 0
    seconds: float = 0.0
    """What the timed steps of the last turn took."""
    clips: int = 0
    """The clips in the timed steps; ``audio_s`` are their seconds, ``places`` the samples of their padded batches."""
    audio_s: float = 0.0
    places: int = 0
    peak_bytes: int = 0
    """The most memory that tensors took at once in the timed steps; on a CPU, that of the process until then."""
    flops_per_place: float = 0.0
    """Operations for each sample of a padded batch: counted in the first step, which is not timed."""
    parameters: int = 0
    """Those of the model."""
    _began: float = field(default=0.0, repr=False)
    _is_running: bool = field(default=False, repr=False)

    @property
    def is_running(self) -> bool:
        """Whether the step that has begun is a timed one."""
        return self._is_running

    @property
    def all_steps(self) -> int:
        """How many steps a loop has to take: one more than its turns have, which stops the clock."""
        return self.warm_up + self.turns * (self.settle + self.steps) + 1

    def meet(self, model: Any) -> None:
        """Note the size of the model."""
        self.parameters = sum(one.numel() for one in model.parameters())

    def begin(self) -> None:
        """A step begins."""
        self.begun += 1
        since = self.begun - self.warm_up - 1
        if since < 0:
            return
        turn, place = divmod(since, self.settle + self.steps)
        if place == 0 and turn:
            self._stop()
            self.tell(self)
        if place == 0:  # after the last turn, too: others are timed then
            self.wait()
        if place == self.settle and turn < self.turns:
            self._start()

    def end(self, clips: int, audio_s: float, places: int) -> None:
        """A step on so many clips is done."""
        if self.is_running:
            self.clips, self.audio_s, self.places = self.clips + clips, self.audio_s + audio_s, self.places + places

    @contextmanager
    def counting(self, places: int) -> Iterator[None]:
        """Count the operations of the block, on so many places, if it is in the first step."""
        from ckptsurgeon.trainer.system.flops import FlopCounter

        if self.begun > 1:
            yield
            return
        with FlopCounter() as counted:
            yield
        self.flops_per_place = counted.flops / places

    def _start(self) -> None:
        import torch

        self.clips, self.audio_s, self.places, self._is_running = 0, 0.0, 0, True
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._began = time.perf_counter()

    def _stop(self) -> None:
        import torch

        from ckptsurgeon.trainer.system.device import peak_bytes

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._began
        self.peak_bytes, self._is_running = peak_bytes(self.device), False
