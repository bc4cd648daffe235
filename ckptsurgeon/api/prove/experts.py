"""Finds the experts that differ between two networks, and the experts of the first network that they equal.

Networks store the weights of all experts of a layer in one tensor, ``(experts, out, in)``, and the weights of its
router as ``(experts, in)``. Only the index says to which expert a slice belongs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ...analysis.prove.figures import Distance, distance
from ...analysis.prove.proof import MovedExpert

__all__ = ["differing_experts", "experts_around"]

_OF_EXPERTS = re.compile("expert|moe", re.IGNORECASE)
"""Matches the names and classes of modules that contain the weights of all experts."""
SAMPLE = 4096
"""At most this many values of each expert are compared to find the nearest expert of the first network."""
Explained = Callable[[Distance, Tensor], bool]


def experts_around(module: nn.Module, keys: Iterable[str]) -> Mapping[str, str]:
    """Return {key: path of its mixture of experts} for those of ``keys`` that have a slice for each expert of a layer.

    These are the stacked weights and biases of the experts, and the weight and the bias of the router in the same
    module.
    """
    shapes = {key: tuple(one.shape) for key, one in (*module.named_parameters(), *module.named_buffers())}
    around: dict[str, int] = {}
    for key, shape in shapes.items():
        path = key.rpartition(".")[0]
        is_stack = len(shape) == 3 and shape[0] > 1 and not isinstance(module.get_submodule(path), nn.Conv1d)
        if is_stack and any(map(_OF_EXPERTS.search, (path, type(module.get_submodule(path)).__name__))):
            around[path.rpartition(".")[0]] = shape[0]
    found: dict[str, str] = {}
    for key in keys:
        inner = max((path for path in around if key.startswith(f"{path}." if path else "")), key=len, default=None)
        if inner is not None and shapes.get(key, ())[:1] == (around[inner],):
            found[key] = inner
    return found


def differing_experts(first: Tensor, second: Tensor, is_explained: Explained) -> tuple[MovedExpert, ...]:
    """Return the experts whose slices of two tensors differ by more than rounding explains, in their order.

    Each result has the index of the expert in ``second``, and the index of the expert in ``first`` that equals it; None
    if no expert does. Both tensors have the same shape, with the experts as first dimension.
    """
    odd = [
        index
        for index, pair in enumerate(zip(first, second, strict=True))
        if not is_explained(distance(*pair), pair[0])
    ]
    if not odd:
        return ()
    samples = [one.reshape(len(one), -1)[:, : _samples(one)].double() for one in (first, second)]
    apart = torch.cdist(samples[1][odd], samples[0], compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.nan_to_num(torch.inf, posinf=torch.inf).argmin(dim=1).tolist()
    return tuple(
        MovedExpert(index, other if is_explained(distance(first[other], second[index]), first[other]) else None)
        for index, other in zip(odd, nearest, strict=True)
    )


def _samples(values: Tensor) -> int:
    return min(SAMPLE, values[0].numel())
