"""Reads tensors that are sharded over processes: torch's DTensor, as in FSDP2 and tensor parallelism.

https://docs.pytorch.org/docs/stable/distributed.tensor.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_distributed", "own_bounds", "own_part", "part_of", "whole"]


def is_distributed(tensor: object) -> bool:
    """Return whether an object is a tensor that is sharded over processes."""
    return hasattr(tensor, "full_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, in the same memory; the whole tensor if it is not a DTensor."""
    held: Tensor = tensor.detach().to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return held


def own_bounds(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of this process's shard for each dimension of the whole tensor."""
    if not is_distributed(tensor):
        return tuple((0, size) for size in tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return tuple((begin, begin + size) for begin, size in zip(offset, shape, strict=True))


def part_of(values: Tensor, tensor: Tensor) -> Tensor:
    """Return the part of ``values`` that belongs to this process's shard of ``tensor``.

    ``values`` has the shape of the whole tensor.
    """
    return values[tuple(slice(*part) for part in own_bounds(tensor))] if is_distributed(tensor) else values


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor; all processes with a shard must call it together."""
    found: Tensor = tensor.detach().full_tensor() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]
    return found
