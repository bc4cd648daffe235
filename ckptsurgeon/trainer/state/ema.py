"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...destinations.torch_module.tensors import own_part

__all__ = ["EMA"]


class EMA:
    """A moving average of the floating tensors of a model's state dict.

    ``average = decay * average + (1 - decay) * value``. For a sharded model, each rank averages its own shards.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = _floating_tensors(model)
        self.tensors = {key: tensor.detach().clone() for key, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's current weights; call this after each step."""
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), 1 - self._decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the average by the tensors of a checkpoint, by key."""
        for key, tensor in self.tensors.items():
            tensor.copy_(tensors[key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the model's weights to the average inside the block, and restore them after it."""
        live = list(self._live.values())
        with torch.no_grad():
            saved = [tensor.detach().clone() for tensor in live]
            torch._foreach_copy_(live, list(self.tensors.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, saved)


def _floating_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the floating tensors by key; a tied tensor only under its first key, as it must not be averaged twice."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            found[key] = own_part(tensor.detach())
    return found
