"""The state dict of an ``nn.Module``: headers, ties, and axes that grow with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from .parts import is_distributed

__all__ = ["GrowingAxes", "grown_axes", "infos_of", "state_of", "ties_of"]


def state_of(module: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a module's state dict, and the keys of its other entries.

    Raises ConfigError if ``module`` is not a module, or its shapes are not known without data.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the model is a {escape(type(module).__name__)}, not an nn.Module.")
    lazy = [key for key, value in _own(module).items() if nn.parameter.is_lazy(value)]
    if lazy:
        raise ConfigError(
            f"the shapes of {listing(lazy)} are only known after a forward pass.",
            hint="Give lazy modules their input sizes.",
        )
    entries = module.state_dict(keep_vars=True)
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    return tensors, tuple(key for key in entries if key not in tensors)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a module by key, also buffers that the state dict leaves out."""
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
            f"the destination's tensor {escape(key)} has the {wrong}, which no checkpoint can be written for.",
            hint="Register a dense tensor of a floating-point or integer dtype instead, for example its to_dense().",
        )
    return TensorInfo(dtype, tuple(tensor.shape))


def ties_of(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return a map from each key to the earlier key whose tensor is the same view of the same storage."""
    first: dict[Any, str] = {}
    ties: dict[str, str] = {}
    for key, tensor in tensors.items():
        place: object = (
            tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
        ) if not is_distributed(tensor) else id(tensor)  # fmt: skip
        if tensor.numel() and first.setdefault(place, key) != key:
            ties[key] = first[place]
    return ties


# Axes that are as long as the vocabulary: those that grow with it. Found by building the model twice.

Tensors = Mapping[str, TensorInfo]


class GrowingAxes(Mapping[str, int]):
    """The axis of each tensor that grows with the vocabulary; computed on first use, by building a larger model."""

    def __init__(self, find: Callable[[], Mapping[str, int]]) -> None:
        self._find = find

    @cached_property
    def _axes(self) -> Mapping[str, int]:
        return self._find()

    def __getitem__(self, key: str) -> int:
        return self._axes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)


def grown_axes(tensors: Tensors, grown: Tensors) -> dict[str, int]:
    """Return, by key, the axis along which a tensor is longer in ``grown``, the same model with more tokens.

    A tensor that grows along two axes (a table of tokens by tokens) is left out; the user has to name one of the axes.
    """
    found: dict[str, int] = {}
    for key, info in tensors.items():
        other = grown[key].shape if key in grown else info.shape
        if len(other) == len(info.shape):
            axes = [axis for axis, size in enumerate(info.shape) if other[axis] > size]
            found.update({key: axes[0]} if len(axes) == 1 else {})
    return found
