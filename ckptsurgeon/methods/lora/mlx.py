"""Reads an adapter of mlx-lm: its factors are transposed, (in, rank) and (rank, out), and have one scale."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from ...errors import ConfigError, FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import brief_repr, escape, listing
from .adapter import Adapter, AdapterModule

__all__ = ["TRANSPOSED", "check_mlx", "is_mlx", "read_mlx"]

TRANSPOSED: tuple[Mapping[str, Any], ...] = ({"transpose": "**.lora_a"}, {"transpose": "**.lora_b"})
"""The operations that give the factors the layout that PEFT's factors have."""
SIDES = (".lora_a", ".lora_b")


def is_mlx(data: Any) -> bool:
    """Return whether the data of an adapter_config.json come from mlx-lm."""
    return isinstance(data, Mapping) and "peft_type" not in data and "lora_parameters" in data


def check_mlx(tensors: Mapping[str, TensorInfo], data: Mapping[str, Any], name: str) -> float:
    """Return the scale of an adapter; raises ConfigError or FormatError if it is not a LoRA of linear layers.

    ``tensors`` are the tensors of the file, not transposed yet; ``data`` is the data of adapter_config.json.
    """
    kind = data.get("fine_tune_type", "lora")
    if kind != "lora":
        raise ConfigError(
            f"{escape(name)} has the fine_tune_type {brief_repr(kind, 40)}; only lora can be read.",
            hint="Fuse it with mlx_lm.fuse.",
        )
    parameters = data["lora_parameters"]
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not isfinite(scale):
        raise ConfigError(
            f"{escape(name)}: the scale in lora_parameters is {brief_repr(scale, 40)}, not a finite number."
        )
    odd = [key for key, info in tensors.items() if not key.endswith(SIDES) or not _is_matrix(info)]
    if odd or not tensors:
        raise FormatError(
            f"{escape(name)} has tensors that are not factors of linear layers: {listing(odd)}."
            if odd
            else f"{escape(name)} is not an adapter: it has no tensors.",
            rule="unknown key",
            details=odd,
        )
    halves = [key for key in tensors if _other(key) not in tensors]
    if halves:
        raise FormatError(f"{escape(name)} has {escape(halves[0])}, but not the other factor.", rule="half an adapter")
    return float(scale)


def _other(key: str) -> str:
    """Return the key of the other factor of the same module."""
    return f"{key[:-1]}{'b' if key[-1] == 'a' else 'a'}"


def _is_matrix(info: TensorInfo) -> bool:
    kind = DTYPES[info.dtype]
    return len(info.shape) == 2 and kind.kind == "float" and not kind.is_packed and not info.opaque


def read_mlx(tensors: Mapping[str, TensorInfo], scale: float, name: str) -> Adapter:
    """Return the adapter with these ``tensors``; its factors are already transposed to (rank, in) and (out, rank).

    Raises FormatError if the two factors of a module have different ranks.
    """
    modules = []
    for key, info in tensors.items():
        if not key.endswith(SIDES[0]):
            continue
        module, other = key.removesuffix(SIDES[0]), tensors[_other(key)]
        if not info.shape[0] or info.shape[0] != other.shape[1]:
            are = "differ" if info.shape[0] != other.shape[1] else "are 0"
            raise FormatError(f"the ranks of the factors of {escape(module)} in {escape(name)} {are}.", rule="rank")
        modules.append(AdapterModule(module, key, _other(key), scale))
    return Adapter(name, tuple(modules), {}, spelling="mlx-lm")
