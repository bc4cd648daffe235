"""Buffers that a forward pass changes, such as a norm's statistics: kept, so that they can be put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BufferSnapshot"]


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
