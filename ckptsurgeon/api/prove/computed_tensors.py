"""Computes the tensors that a checkpoint lacks because the class of its network computes them, such as positions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...planning.target import TargetSpec
from ...planning.transplant.plan_errors import missing_text
from ...tensors.info import TensorInfo

__all__ = ["computed_tensors"]

SEEDS = (0, 1)
"""Initial values that are the same with these two seeds are computed, not drawn at random."""


def computed_tensors(spec: TargetSpec, module: nn.Module, missing: Sequence[str]) -> dict[str, Tensor]:
    """Return the values of the tensors ``missing`` as the class of ``module`` computes them, by key.

    Sinusoidal positions are an example. Raises PlanError for tensors that must not be missing for ``from_pretrained``,
    and for tensors with random initial values.
    """
    if not missing:
        return {}  # some networks are built again for each seed
    patterns = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    keys = [key for key in missing if any(re.search(pattern, key) for pattern in patterns)]
    first, second = ({key: bytes(data) for key, data in spec.initial(keys, seed)} for seed in SEEDS)
    lacking = [key for key in missing if key not in first or first[key] != second[key]]
    if lacking:
        raise PlanError(missing_text(lacking), details=lacking)
    return {key: _as_tensor(data, spec.tensors[key]) for key, data in first.items()}


def _as_tensor(data: bytes, info: TensorInfo) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, info.dtype)).reshape(info.shape)
