"""The optimizer with its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.settings import Settings
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from .freezing import ParameterRule

__all__ = ["Optimizer", "lr_factor"]


class Optimizer:
    """AdamW or SGD (momentum: the first of ``betas``) over the parameters that are trained at some time.

    One group for each share of the learning rate. What is frozen has no gradient, and so no state. ``reached`` says of
    each parameter whether a gradient other than zero ever came to it. Norms are of parameters that ``ranks`` hold in
    parts, each its own.
    """

    def __init__(
        self, settings: Settings, parameters: Mapping[str, nn.Parameter], freedoms: Mapping[str, ParameterRule],
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        self._lr, self._ranks = settings.lr, ranks
        self.names = list(parameters)
        scales = {key: freedoms[key].scale for key in parameters}
        self._scales = list(dict.fromkeys(scales.values()))
        self.order = [key for scale in self._scales for key in parameters if scales[key] == scale]
        self.parameters = [parameters[key] for key in self.order]
        self.reached = torch.zeros(len(self.parameters), dtype=torch.bool, device=self.parameters[0].device)
        groups: list[dict[str, Any]] = [
            {"params": [parameters[key] for key in parameters if scales[key] == scale]} for scale in self._scales
        ]
        self.inner: torch.optim.Optimizer
        # Fused, on the CPU too: they can be told on the device to skip a step, which then costs no wait.
        first, second = settings.betas
        if settings.optimizer == "adamw":
            self.inner = torch.optim.AdamW(
                groups, settings.lr, (first, second), settings.eps, settings.weight_decay, fused=True
            )
        else:
            self.inner = torch.optim.SGD(groups, settings.lr, first, weight_decay=settings.weight_decay, fused=True)

    def rates(self, factor: float) -> dict[str, float]:
        """Set the learning rates and return them, by share."""
        for group, scale in zip(self.inner.param_groups, self._scales, strict=True):
            group["lr"] = self._lr * scale * factor
        return {f"{scale:g}": group["lr"] for group, scale in zip(self.inner.param_groups, self._scales, strict=True)}

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Return the norm of each parameter's gradient, 0 where there is none."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = iter(torch._foreach_norm(gradients) if gradients else ())
        none = torch.zeros((), device=self.reached.device)
        return self._of_whole([none if parameter.grad is None else next(norms) for parameter in self.parameters])

    def _of_whole(self, norms: Sequence[Tensor]) -> Tensor:
        """Return the norms of what this process may hold a part of."""
        found = torch.stack(list(norms))
        if self._ranks.size == 1:
            return found
        squares = found.square()
        self._ranks.add([squares])
        return squares.sqrt()

    def step(self, bad: Tensor, norms: Tensor) -> None:
        """Take a step, unless ``bad`` (0-d) is true; drop the gradients, whose ``norms`` are noted."""
        self.reached |= (norms > 0) & ~bad
        if isinstance(self.inner, torch.optim.SGD):
            self._begin_momentum()
        # What torch's GradScaler sets for the same purpose.
        self.inner.found_inf = bad.float()  # type: ignore[attr-defined]
        self.inner.grad_scale = None  # type: ignore[attr-defined]
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def _begin_momentum(self) -> None:
        """Let momentum begin at 0: torch's begins at what memory holds, which a first step that is skipped leaves."""
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None and not self.inner.state[parameter]:
                    self.inner.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def learned(self) -> dict[str, bool]:
        """Return for each trained key whether a gradient other than zero ever reached it."""
        return dict(zip(self.order, self.reached.tolist(), strict=True))

    @torch.no_grad()
    def moved_since(self, old: Sequence[Tensor]) -> dict[str, float]:
        """Return how far each parameter is from what it was, as a share of its norm."""
        if not old:
            return {}
        pairs = zip(self.parameters, old, strict=True)
        moved = self._of_whole([torch.linalg.vector_norm(now - before) for now, before in pairs])
        ratios = moved / self._of_whole(torch._foreach_norm(list(old))).clamp(min=1e-12)
        return dict(zip(self.order, ratios.tolist(), strict=True))

    def has_state(self, key: str) -> bool:
        """Whether anything is kept for a key."""
        return key in self.order and bool(self.inner.state.get(self.parameters[self.order.index(key)]))


def lr_factor(settings: Settings, step: int) -> float:
    """Return what the learning rate of the ``step``-th step, counted from 0, is multiplied by."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    falling = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_lr + (1 - settings.final_lr) * falling
