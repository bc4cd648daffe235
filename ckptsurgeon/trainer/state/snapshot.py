"""Copies a run's tensors to the CPU, so that they can be written to disk while the run continues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Snapshot"]


class Snapshot:
    """Copies tensors to the CPU, into memory that the next snapshot uses again.

    Copies from a GPU go to pinned memory, and ``take`` returns before they are complete. So a thread that reads the
    copies must call ``wait`` first.
    """

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self._copies: dict[int, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def take(self, value: Any) -> Any:
        """Return ``value`` with all tensors in its dicts, lists and tuples replaced by copies on the CPU.

        A tensor that occurs several times is copied once.
        """
        self._copies = {}
        made = self._copy(value)
        del self._memory[len(self._copies) :]
        if any(one.is_pinned() for one in self._memory):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return made

    def wait(self) -> None:
        """Wait until the GPU has made all copies, so that another thread can read them."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, dict):
            return {name: self._copy(one) for name, one in value.items()}
        return type(value)(map(self._copy, value)) if type(value) in (list, tuple) else value

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._copies:
            place = len(self._copies)
            memory = self._memory[place] if place < len(self._memory) else None
            if memory is None or _form(memory) != _form(tensor):
                memory = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._memory[place : place + 1] = [memory]
            self._copies[id(tensor)] = memory.copy_(tensor, non_blocking=True)
        return self._copies[id(tensor)]


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()
