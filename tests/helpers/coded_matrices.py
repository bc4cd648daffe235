"""Encodes a matrix as each method of quantisation does, to nearest: scales and signs are theirs, values need not be.

Each function returns the stored tensors of the matrix by the endings of their keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ckptsurgeon.tensors.bitsandbytes_values import VALUES
from ckptsurgeon.tensors.encoders.bitsandbytes import dynamic_map

__all__ = ["SETTINGS", "Encode", "auto_round", "awq", "gptq", "llm_int8", "mlx", "nf4", "old_mlx", "save_model"]

Parts = dict[str, torch.Tensor]
Encode = Callable[[torch.Tensor], Parts]
GROUP = 64
PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: the outputs in a word, from its lowest bits."""
SETTINGS: Mapping[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "llm_int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "mlx": {"group_size": GROUP, "bits": 4},
}
SETTINGS = {**SETTINGS, "auto_round": SETTINGS["gptq"], "old_mlx": SETTINGS["mlx"]}


def words(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes in each int32, along the last dimension, from the lowest bits."""
    shifted = codes.long().unflatten(-1, (-1, 8)) << (4 * torch.arange(8))
    return shifted.sum(-1).to(torch.uint32).view(torch.int32)


def _unsigned(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    codes = torch.round(groups / scale[..., None]) + zero[..., None]
    return codes.clamp(0, 15).flatten(-2)


def gptq(weight: torch.Tensor, *, signed: bool = False) -> Parts:
    """GPTQ with symmetric codes; with ``signed``, the value of the largest magnitude gets the code of -8."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    scale = groups.abs().amax(-1) * 2 / 15
    if signed:
        low, high = groups.amin(-1), groups.amax(-1)
        scale = torch.where(high < -low, -low, -high) / 8
    zero = torch.full_like(scale, 8)
    return {
        ".qweight": words(_unsigned(groups, scale, zero)).T.contiguous(),
        ".qzeros": words((zero - 1).T.contiguous()), ".scales": scale.T.contiguous().half(),
        ".g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }  # fmt: skip


def auto_round(weight: torch.Tensor) -> Parts:
    """The symmetric codes of AutoRound in GPTQ's layout: about half of the scales are negative."""
    return gptq(weight, signed=True)


def awq(weight: torch.Tensor) -> Parts:
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    zero = torch.round(-low / scale).clamp(0, 15)
    codes = _unsigned(groups, scale, zero).T
    codes, zeros = (one.unflatten(-1, (-1, 8))[..., PLACES].flatten(-2) for one in (codes, zero.T))
    return {".qweight": words(codes), ".qzeros": words(zeros), ".scales": scale.T.contiguous().half()}


def nf4(weight: torch.Tensor) -> Parts:
    table, blocks = torch.tensor(VALUES["nf4"]), weight.float().reshape(-1, GROUP)
    scale = blocks.abs().amax(1)
    codes = ((blocks / scale[:, None])[..., None] - table).abs().argmin(-1).reshape(-1, 2).to(torch.uint8)
    state = {"quant_type": "nf4", "blocksize": GROUP, "dtype": "float32", "shape": list(weight.shape)}
    return {
        ".weight": codes[:, :1] * 16 + codes[:, 1:], ".weight.absmax": scale, ".weight.quant_map": table,
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }  # fmt: skip


def nested_nf4(weight: torch.Tensor, part: float = 1) -> Parts:
    """nf4 with double quantisation: the scales, less their mean, are codes; the offset is ``part`` of the mean."""
    parts, table = nf4(weight), torch.from_numpy(dynamic_map().copy())
    scale = parts.pop(".weight.absmax").nan_to_num()
    offset = float(scale.mean())
    padded = torch.nn.functional.pad(scale - offset, (0, -len(scale) % 256)).reshape(-1, 256)
    outer = padded.abs().amax(1)
    codes = ((padded / outer[:, None])[..., None] - table).abs().argmin(-1).reshape(-1)[: len(scale)].to(torch.uint8)
    key = ".weight.quant_state.bitsandbytes__nf4"
    state = {**json.loads(bytes(parts[key].tolist())), "nested_blocksize": 256, "nested_offset": offset * part}
    return {
        **parts, ".weight.absmax": codes, ".weight.nested_absmax": outer, ".weight.nested_quant_map": table,
        key: torch.tensor(list(json.dumps({**state, "nested_dtype": "float32"}).encode()), dtype=torch.uint8),
    }  # fmt: skip


def llm_int8(weight: torch.Tensor) -> Parts:
    scale = weight.float().abs().amax(1)
    return {".weight": (weight / scale[:, None] * 127).round().to(torch.int8), ".SCB": scale}


def mlx(weight: torch.Tensor, *, bits: int = 4, group: int = GROUP, dtype: torch.dtype = torch.float16) -> Parts:
    """MLX's affine mode (mlx/backend/cpu/quantized.cpp): the bias is the end of the range that is farther from 0."""
    groups, top = weight.float().unflatten(-1, (-1, group)), 2**bits - 1
    low, high = groups.amin(-1), groups.amax(-1)
    is_low = low.abs() > high.abs()
    scale = ((high - low) / top).clamp(min=1e-7)
    scale, edge = torch.where(is_low, scale, -scale), torch.where(is_low, low, high)
    steps = torch.round(edge / scale)
    scale = torch.where(steps == 0, scale, edge / steps)
    return _affine(groups, scale, torch.where(steps == 0, 0, edge), bits, dtype)


def old_mlx(weight: torch.Tensor, *, bits: int = 4, group: int = GROUP, dtype: torch.dtype = torch.float16) -> Parts:
    """The first versions of MLX: the bias is the smallest value of a group."""
    groups = weight.float().unflatten(-1, (-1, group))
    low, high = groups.amin(-1), groups.amax(-1)
    return _affine(groups, ((high - low) / (2**bits - 1)).clamp(min=1e-7), low, bits, dtype)


def _affine(groups: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, bits: int, dtype: torch.dtype) -> Parts:
    codes = torch.round((groups - bias[..., None]) / scale[..., None]).clamp(0, 2**bits - 1).flatten(-2)
    shifted = codes.long()[..., None] >> torch.arange(bits) & 1
    packed = (shifted.flatten(-2).unflatten(-1, (-1, 32)) << torch.arange(32)).sum(-1)
    return {".weight": packed.to(torch.uint32), ".scales": scale.to(dtype), ".biases": bias.to(dtype)}


def save_model(folder: Path, settings: dict[str, Any], weights: Mapping[str, Parts]) -> Path:
    """Write encoded matrices, by the names of their modules, in a folder with the quantisation settings."""
    folder.mkdir(exist_ok=True)
    state = {f"{name}{end}": one.contiguous() for name, parts in weights.items() for end, one in parts.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama", "torch_dtype": "float16", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
