"""Digests of tensors: whether two are equal, bit for bit, without keeping both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ...destinations.torch_module.parts import whole

__all__ = ["bits", "digest", "digests"]


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's values, row-major, on the CPU; of one held in parts every process has to ask."""
    return whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def digest(tensor: Tensor) -> str:
    """Return the digest of a tensor's values."""
    return hashlib.blake2b(bits(tensor).numpy().data, digest_size=16).hexdigest()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the digest of each tensor."""
    return {key: digest(tensor) for key, tensor in tensors.items()}
