"""Encodes matrices as ModelOpt does, and writes its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["FP8", "NVFP4", "fp8", "hf_quant_config", "nvfp4"]

Parts = dict[str, torch.Tensor]
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP8: Mapping[str, Any] = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
NVFP4: Mapping[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}


def hf_quant_config(algorithm: str, excluded: Sequence[str] = ("lm_head",)) -> dict[str, Any]:
    """The file hf_quant_config.json of a model, by its name."""
    own = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": [*excluded]}
    return {"hf_quant_config.json": {"producer": {"name": "modelopt", "version": "0.29"}, "quantization": own}}


def fp8(weight: torch.Tensor) -> Parts:
    """8-bit floats with one scale, and a scale of the inputs."""
    scale = weight.abs().amax() / 448
    return {
        ".weight": (weight / scale).to(torch.float8_e4m3fn), ".weight_scale": scale.float(),
        ".input_scale": 0.01 + weight.abs().mean().float() / 10,
    }  # fmt: skip


def nvfp4(weight: torch.Tensor) -> Parts:
    """4-bit floats in groups of 16, whose scales are 8-bit floats with one scale, and a scale of the inputs."""
    groups, outer = weight.unflatten(-1, (-1, 16)), weight.abs().amax() / (448 * 6)
    scale = (groups.abs().amax(-1) / 6 / outer).to(torch.float8_e4m3fn)
    near = groups / (scale.float() * outer)[..., None].clamp(min=1e-9)
    codes = ((near.abs()[..., None] - LEVELS).abs().argmin(-1) + 8 * (near < 0)).flatten(-2).to(torch.uint8)
    return {
        ".weight": codes[:, ::2] | codes[:, 1::2] << 4, ".weight_scale": scale, ".weight_scale_2": outer.float(),
        ".input_scale": 0.01 + weight.abs().mean().float() / 10,
    }  # fmt: skip
