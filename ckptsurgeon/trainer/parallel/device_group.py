"""The group of GPUs that sum gradients (NCCL), and how it is given up when a process is gone.

A GPU that is to sum with one that no longer exists waits for ever, and whatever reads a value from it waits, too:
``.cpu()``, ``.item()``, an allocation that frees memory. Only an abort of the group ends that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["GRACE_S", "DeviceGroup"]

GRACE_S = 5.0
"""How long a GPU may take to end what is queued on it, once another rank is gone."""


class DeviceGroup:
    """The NCCL group of this rank; ``backend`` is torch's ProcessGroupNCCL.

    ``is_idle`` returns, without waiting, whether the GPU has done all that was queued.
    """

    def __init__(self, backend: Any, is_idle: Callable[[], bool]) -> None:
        self._backend, self._is_idle = backend, is_idle
        self._is_shared = False
        self.is_aborted = False

    @staticmethod
    def of_default(device: torch.device) -> DeviceGroup:
        """Return the default group, which must be one of NCCL."""
        from torch import distributed

        backend: Any = distributed.group.WORLD._get_backend(device)  # type: ignore[union-attr]
        return DeviceGroup(backend, lambda: torch.cuda.current_stream(device).query())

    def begin(self) -> None:
        """Note that the GPU now gets work that it can only end together with the others."""
        self._is_shared = True

    def confirm(self) -> None:
        """Note that a value was read from the GPU, which so has done its work; raises DistBackendError if it has not.

        If the work was given up, what is read is what was there at that time.
        """
        if self.is_aborted:
            from torch import distributed

            raise distributed.DistBackendError("the GPU's work with the others was given up: a rank has ended")
        self._is_shared = False

    def give_up(self) -> None:
        """Abort if the GPU may wait for another one; the watch calls this while the main thread waits for the GPU."""
        if self._is_shared:
            self.abort()

    def settle(self) -> bool:
        """Let the GPU end its work, for a few seconds, and then leave the group; returns whether its values are good.

        They are not if it did not come to an end: what waited behind a sum went on with what was there of the sum.
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
