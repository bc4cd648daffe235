"""Collects the contribution of each expert of a layer, if one module has the weights of all experts.

The module's computation is repeated for each expert; the results are only used if their sum equals the module's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ExpertSums", "are_experts", "by_expert", "expert_arguments", "is_near", "stacked_sizes"]

TOLERANCE = 1e-3
"""The largest allowed difference from the module's output, relative to the output's largest absolute value."""


def are_experts(module: nn.Module) -> bool:
    """Return whether a module holds the weights of all experts, as transformers stacks them."""
    down = getattr(module, "down_proj", None)
    return type(module).__name__.endswith("Experts") and getattr(down, "ndim", 0) == 3


@dataclass
class ExpertSums:
    """Sums over the contributions of the experts of a module, from which ``results`` computes statistics.

    ``saliency`` has, for each expert, the sum of router weight times norm of its output, and ``used`` the number of
    positions that used it. ``inputs`` has, for each expert and each channel, the sum of the squares of router weight
    times input of the expert's last layer, over ``count`` positions.
    """

    saliency: Any = None
    used: Any = None
    inputs: Any = None
    count: int = 0
    is_known: bool = True

    def results(self) -> Mapping[str, Tensor]:
        """Return {last part of a key: statistics}, with "saliency" and "inputs".

        The result is {} if no position was added, or if it is not known how the module computes. ``saliency`` is the
        mean over the positions that use an expert (REAP, https://arxiv.org/abs/2510.13999).
        """
        if not (self.is_known and self.count):
            return {}
        mean = self.saliency / self.used.clamp(min=1)
        return {"saliency": mean.float(), "inputs": (self.inputs / self.count).float()}

    def add(self, module: nn.Module, given: Sequence[Any], output: Any, real: Tensor | None) -> None:
        """Add the experts' contributions for the inputs ``given``; positions where ``real`` is false are left out."""
        import torch

        found = expert_arguments(given)
        if found is None or not self.is_known:
            self.is_known = False
            return
        hidden, chosen, weights = found
        keep = real.reshape(-1) if real is not None and real.numel() == len(hidden) else None
        number, _, size = stacked_sizes(module)
        sums = (torch.zeros(number).double(), torch.zeros(number).double(), torch.zeros(number, size).double())
        total = torch.zeros_like(hidden, dtype=torch.float64)
        try:
            for expert, rows, factors, inner, outer in by_expert(module, hidden, chosen, weights):
                total.index_add_(0, rows, outer.double() * factors[:, None])
                if keep is not None:
                    factors, inner, outer = (one[keep[rows]] for one in (factors, inner, outer))
                sums[0][expert] = (outer.double().norm(dim=1) * factors).sum()
                sums[1][expert] = len(factors)
                sums[2][expert] = (inner.double() * factors[:, None]).square().sum(0)
        except (AttributeError, RuntimeError, TypeError, IndexError):  # the module's weights have other names or shapes
            self.is_known = False
            return
        result = output[0] if isinstance(output, tuple) else output
        self.is_known = is_near(total, result)
        if self.saliency is None:
            self.saliency, self.used, self.inputs = sums
        else:
            self.saliency, self.used, self.inputs = (
                one + more for one, more in zip((self.saliency, self.used, self.inputs), sums, strict=True)
            )
        self.count += int(keep.sum()) if keep is not None else len(hidden)


def stacked_sizes(module: nn.Module) -> tuple[int, int, int]:
    """Return the number of experts, the width and the number of channels of a module."""
    shape: Sequence[int] = module.down_proj.shape  # type: ignore[assignment]
    number, width, size = shape
    return (number, size, width) if getattr(module, "is_transposed", False) else (number, width, size)


def expert_arguments(given: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return (inputs, indices of the chosen experts, their weights) from ``given``, the arguments of a module.

    Returns None if ``given`` does not consist of these three tensors.
    """
    import torch

    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    if len(tensors) < 3:
        return None
    hidden, chosen, weights = tensors[:3]
    if chosen.is_floating_point() or chosen.shape != weights.shape or (hidden.ndim, chosen.ndim) != (2, 2):
        return None
    return (hidden, chosen, weights) if len(hidden) == len(chosen) else None


def by_expert(
    module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """Yield, for each used expert, its index, the positions that use it, router weights, inner values and outputs.

    The inner values are the inputs of the expert's last layer.
    """
    import torch

    number = stacked_sizes(module)[0]
    for expert in torch.unique(chosen).tolist():
        if not 0 <= expert < number:  # this index means that no expert is used
            continue
        rows, places = torch.where(chosen == expert)
        first = _product(module, "gate_up_proj" if module.has_gate else "up_proj", expert, hidden[rows])
        inner = module._apply_gate(first) if module.has_gate else module.act_fn(first)
        yield expert, rows, weights[rows, places].double(), inner, _product(module, "down_proj", expert, inner)


def _product(module: Any, name: str, expert: int, values: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    product: Tensor = values @ (weight if module.is_transposed else weight.T)
    return product + getattr(module, f"{name}_bias")[expert] if module.has_bias else product


def is_near(total: Tensor, result: Any) -> bool:
    """Return whether ``total``, the sum of all experts' outputs, equals ``result``, the module's output."""
    import torch

    if not isinstance(result, torch.Tensor) or result.numel() != total.numel():
        return False
    wanted = result.detach().double().reshape(total.shape)
    return bool((total - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
