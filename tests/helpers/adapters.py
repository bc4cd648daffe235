"""Adapters for tests, written as the toolkits write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["base_state", "factors", "peft_folder"]

State = dict[str, torch.Tensor]


def base_state(dtype: torch.dtype = torch.float32) -> State:
    """A small base: matrices of several shapes, a bias, an embedding."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (11, 8), "layers.0.q.weight": (8, 8), "layers.0.q.bias": (8,), "layers.0.up.weight": (20, 8),
        "layers.1.q.weight": (8, 8), "layers.1.q.bias": (8,), "layers.1.up.weight": (20, 8), "conv.weight": (5, 3, 3, 2),
        "norm.weight": (8,),
    }  # fmt: skip
    return {key: torch.randn(shape).to(dtype) for key, shape in shapes.items()}


def factors(out: int, into: int, rank: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, in) and B (out, rank)."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(rank, into, generator=made), torch.randn(out, rank, generator=made)


def peft_folder(folder: str, tensors: Mapping[str, torch.Tensor], **config: Any) -> None:
    """Write a folder as PEFT does; keys get its prefix."""
    Path(folder).mkdir()
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    Path(folder, "adapter_config.json").write_text(json.dumps(said))
    named = {f"base_model.model.{key}": value.clone().contiguous() for key, value in tensors.items()}
    save_file(named, f"{folder}/adapter_model.safetensors")
