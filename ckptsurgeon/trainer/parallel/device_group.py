"""The group of GPUs that sum gradients (NCCL); a rank leaves the group if another process has ended.

If a process has ended, the GPUs of the other processes wait in their next sum for ever. Every operation that reads a
value from a waiting GPU also waits: ``.cpu()``, ``.item()``, an allocation that frees memory. Only an abort of the
group ends the wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["GRACE_S", "DeviceGroup"]

GRACE_S = 5.0
"""After another rank has ended, a GPU has this many seconds to complete its queued work."""


class DeviceGroup:
    """The NCCL group in which the GPUs of all ranks sum gradients; ``backend`` is torch's ProcessGroupNCCL.

    ``is_idle`` is a function that returns, without waiting, whether the GPU has done all queued work.
    """

    def __init__(self, backend: Any, is_idle: Callable[[], bool]) -> None:
        self._backend, self._is_idle = backend, is_idle
        self._is_shared = False
        self.is_aborted = False

    @staticmethod
    def of_default(device: torch.device) -> DeviceGroup:
        """Return the DeviceGroup of torch's default process group, which must use NCCL."""
        from torch import distributed

        backend: Any = distributed.group.WORLD._get_backend(device)  # type: ignore[union-attr]
        return DeviceGroup(backend, lambda: torch.cuda.current_stream(device).query())

    def begin(self) -> None:
        """Record that the GPU is about to get work that needs the other GPUs, such as sums of gradients."""
        self._is_shared = True

    def confirm(self) -> None:
        """Record that a value was read from the GPU, so the GPU's work with the other GPUs is done.

        Raises DistBackendError if this work was aborted: the value is then wrong.
        """
        if self.is_aborted:
            from torch import distributed

            raise distributed.DistBackendError("the GPU's work with the other GPUs was aborted: a rank has ended")
        self._is_shared = False

    def give_up(self) -> None:
        """Abort the group if the GPU may be waiting for another GPU.

        The thread that watches the other ranks calls this while the main thread waits for the GPU.
        """
        if self._is_shared:
            self.abort()

    def settle(self) -> bool:
        """Wait up to ``GRACE_S`` seconds for the GPU to end its work, and leave the group.

        Returns whether the values on the GPU are right. They are wrong if the work did not end in time: later
        operations have then used the result of an unfinished sum.
        """
        until, is_whole = time.monotonic() + GRACE_S, False
        while not (is_whole or self.is_aborted) and time.monotonic() < until:
            try:
                is_whole = self._is_idle()
            except RuntimeError:  # an error of the GPU itself
                break
            if not is_whole:
                time.sleep(0.05)
        self.abort()
        return is_whole

    def abort(self) -> None:
        """Leave the group now, and end its work on this GPU. No collective call on GPUs is possible afterwards."""
        if not self.is_aborted:
            self.is_aborted = True
            self._backend.abort()
