"""Reads the state dict of an ``nn.Module``: tensors, dtypes, shapes and ties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from .parts import is_distributed

__all__ = ["infos_of", "state_of", "ties_of"]


def state_of(module: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a module's state dict, and the keys of its other entries.

    Raises ConfigError if ``module`` is not a module, or its shapes are not known without data.
    """
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
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
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
