"""Reads the tensors of an ``nn.Module``: dtypes, shapes and ties, and the shards of tensors over processes.

A sharded tensor is torch's DTensor, as in FSDP2 and tensor parallelism
(https://docs.pytorch.org/docs/stable/distributed.tensor.html). Importing this file does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, listing

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["infos_of", "is_distributed", "own_bounds", "own_part", "part_of", "state_of", "ties_of", "whole"]


def state_of(module: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a module's state dict, and the keys of its other entries.

    Raises ConfigError if ``module`` is not a module, or its shapes are not known without data.
    """
    from torch import Tensor, nn

    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"the model is a {escape(type(module).__name__)}, not an nn.Module.",
            hint="Give a class or function that returns an nn.Module.",
        )
    lazy = [key for key, value in _own(module).items() if nn.parameter.is_lazy(value)]
    if lazy:
        raise ConfigError(
            f"the shapes of {listing(lazy)} are only known after a forward pass.",
            hint="Construct lazy modules with their input sizes, or run a forward pass first.",
        )
    entries = module.state_dict(keep_vars=True)
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    return tensors, tuple(key for key in entries if key not in tensors)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a module by key, also buffers that are not in the state dict."""
    parameters = module.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(remove_duplicate=False))


def infos_of(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    """Return dtype and shape of each tensor; raises ConfigError for a tensor that cannot be in a destination."""
    return {key: _info(key, tensor) for key, tensor in tensors.items()}


def _info(key: str, tensor: Tensor) -> TensorInfo:
    dtype, layout = (str(one).removeprefix("torch.") for one in (tensor.dtype, tensor.layout))
    if dtype not in DTYPES or layout != "strided":
        wrong = f"dtype {dtype}" if dtype not in DTYPES else f"layout {layout}"
        raise ConfigError(
            f"the destination's tensor {escape(key)} has the {wrong}, which cannot be written to a checkpoint.",
            hint="Register a dense tensor of a floating-point or integer dtype instead, for example its to_dense().",
        )
    return TensorInfo(dtype, tuple(tensor.shape))


def ties_of(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return a map from each tied key to the first key whose tensor is the same view of the same storage."""
    first: dict[Any, str] = {}
    ties: dict[str, str] = {}
    for key, tensor in tensors.items():
        place: object = (
            tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        ) if not is_distributed(tensor) else id(tensor)  # fmt: skip
        if tensor.numel() and first.setdefault(place, key) != key:
            ties[key] = first[place]
    return ties


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
