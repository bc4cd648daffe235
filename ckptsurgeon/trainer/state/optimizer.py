"""The optimizer: parameter groups, learning rates, gradient clipping, and steps that are skipped on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config.settings import Settings
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from .freezing import ParameterRule

__all__ = ["Optimizer"]


class Optimizer:
    """AdamW or SGD over all parameters that are trained at some step; the first of ``betas`` is SGD's momentum.

    Parameters with the same learning rate factor and weight decay are in one parameter group. A frozen parameter has no
    gradient, and so no optimizer state. ``order`` has the keys in the order of the groups. ``had_gradient`` has, in
    this order, whether each parameter has had a gradient other than zero. If the parameters are sharded over ``ranks``,
    norms are those of the whole parameters.
    """

    def __init__(
        self, settings: Settings, parameters: Mapping[str, nn.Parameter], rules: Mapping[str, ParameterRule],
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        self._lr, self._ranks = settings.lr, ranks
        kinds = {
            key: (rules[key].lr_scale, _decay(settings, parameter)) for key, parameter in parameters.items()
        }  # fmt: skip
        self._kinds = list(dict.fromkeys(kinds.values()))
        self.order = [key for kind in self._kinds for key in parameters if kinds[key] == kind]
        self.parameters = [parameters[key] for key in self.order]
        self.had_gradient = torch.zeros(len(self.parameters), dtype=torch.bool, device=self.parameters[0].device)
        groups: list[dict[str, Any]] = [
            {"params": [parameters[key] for key in parameters if kinds[key] == kind], "weight_decay": kind[1]}
            for kind in self._kinds
        ]
        self.inner: torch.optim.Optimizer
        self.moments = 2 if settings.optimizer == "adamw" else int(settings.betas[0] > 0)
        """How many tensors of a parameter's size the optimizer keeps for the parameter."""
        # Fused, on the CPU too: a fused optimizer can skip a step by a flag on the device, without a synchronisation.
        first, second = settings.betas
        if settings.optimizer == "adamw":
            self.inner = torch.optim.AdamW(groups, settings.lr, (first, second), settings.eps, fused=True)
        else:
            self.inner = torch.optim.SGD(groups, settings.lr, first, fused=True)

    def set_learning_rates(self, factor: float) -> dict[str, float]:
        """Set each group's learning rate to ``train.lr`` * ``lr_scale`` * ``factor``; return them by ``lr_scale``."""
        for group, (scale, _) in zip(self.inner.param_groups, self._kinds, strict=True):
            group["lr"] = self._lr * scale * factor
        rates = zip(self.inner.param_groups, self._kinds, strict=True)
        return {f"{scale:g}": group["lr"] for group, (scale, _) in rates}

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """Return the norms of the parameters' gradients, in the order of ``order``; 0 if there is no gradient."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norms = iter(torch._foreach_norm(gradients) if gradients else ())
        zero = torch.zeros((), device=self.had_gradient.device)
        return self._whole_norms([zero if parameter.grad is None else next(norms) for parameter in self.parameters])

    @torch.no_grad()
    def scale_gradients(self, norms: Tensor, scale: Tensor, clip: float | None) -> Tensor:
        """Multiply the gradients by ``scale``, and clip their total norm to ``clip``; return the norm before clipping.

        ``norms`` are the norms of the gradients before scaling. Scaling and clipping are done by one multiplication.
        """
        norm: Tensor = torch.linalg.vector_norm(norms) * scale
        factor = scale * (clip / (norm + 1e-6)).clamp(max=1) if clip is not None else scale
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, skip: Tensor, norms: Tensor) -> None:
        """Take a step unless ``skip`` (0-d) is true, and drop the gradients.

        ``norms`` are the gradients' norms, from which ``had_gradient`` is updated.
        """
        self.had_gradient |= (norms > 0) & ~skip
        if isinstance(self.inner, torch.optim.SGD):
            self._create_momentum()
        # torch's GradScaler sets these two to skip a step without a synchronisation.
        self.inner.found_inf = skip.float()  # type: ignore[attr-defined]
        self.inner.grad_scale = None  # type: ignore[attr-defined]
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def _create_momentum(self) -> None:
        """Create momentum buffers of zeros, because torch leaves them uninitialised if the first step is skipped."""
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and parameter.grad is not None and not self.inner.state[parameter]:
                    self.inner.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def gradients_seen(self) -> dict[str, bool]:
        """Return, by key, whether each trained parameter has had a gradient other than zero."""
        return dict(zip(self.order, self.had_gradient.tolist(), strict=True))

    @torch.no_grad()
    def update_ratios(self, old: Sequence[Tensor]) -> dict[str, float]:
        """Return, by key, the norm of each parameter's change since ``old``, relative to the norm of the old value.

        ``old`` are the old values, in the order of ``order``.
        """
        if not old:
            return {}
        pairs = zip(self.parameters, old, strict=True)
        moved = self._whole_norms([torch.linalg.vector_norm(now - before) for now, before in pairs])
        ratios = moved / self._whole_norms(torch._foreach_norm(list(old))).clamp(min=1e-12)
        return dict(zip(self.order, ratios.tolist(), strict=True))

    def has_state(self, key: str) -> bool:
        """Return whether the optimizer has state, such as moments, for the parameter ``key``."""
        return key in self.order and bool(self.inner.state.get(self.parameters[self.order.index(key)]))

    def _whole_norms(self, norms: Sequence[Tensor]) -> Tensor:
        """Return the norms of whole parameters, from the norms of this rank's shards."""
        found = torch.stack(list(norms))
        if self._ranks.size == 1:
            return found
        squares = found.square()
        self._ranks.all_reduce([squares])
        return squares.sqrt()


def _decay(settings: Settings, parameter: nn.Parameter) -> float:
    """Return the weight decay of a parameter; with ``decay: matrices``, biases and the weights of norms have none."""
    return settings.weight_decay if settings.decay == "all" or parameter.dim() > 1 else 0.0
