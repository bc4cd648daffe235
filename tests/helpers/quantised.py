"""A small quantised model, and what its tensors are drawn by."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

OUT, IN = 64, 128
PLAIN = ("model.embed_tokens.weight", "model.norm.weight")
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj")


@dataclass(frozen=True)
class Quantised:
    """A quantised model: what one of its linear layers stores, what its config.json says, what inspect calls it."""

    name: str
    method: str
    store: Callable[[torch.Generator], dict[str, torch.Tensor]]
    settings: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = LAYERS
    parameters: int | None = OUT * IN

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """The state dict: an embedding, a norm, and two linear layers, or whatever ``layers`` are, quantised."""
        generator = torch.Generator().manual_seed(seed)
        found = {
            PLAIN[0]: torch.randn(10, IN, generator=generator).bfloat16(),
            PLAIN[1]: torch.randn(IN, generator=generator).bfloat16(),
        }
        for layer in self.layers:
            found |= {f"{layer}{end}": tensor for end, tensor in self.store(generator).items()}
        return found

    def biases(self) -> dict[str, torch.Tensor]:
        """What is not quantised of those layers."""
        return {
            key: tensor
            for key, tensor in self.tensors().items()
            if key in [f"{layer}{dot}bias" for layer in self.layers for dot in "._"]
        }

    def config(self) -> dict[str, Any]:
        """Its config.json. It says how many layers there are: the class, which verify builds, would have 32."""
        said = {"quantization_config": self.settings} if self.settings else {}
        number = 1 + max(
            (int(found) for layer in self.layers for found in re.findall(r"layers\.(\d+)\.", layer)), default=0
        )
        llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10}
        return {**llama, "num_hidden_layers": number, **said}

    def folder(self, path: Path, seed: int = 0) -> Path:
        """Write it as a folder of transformers, with a tokeniser."""
        path.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors(seed), path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(self.config()))
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
        (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
        (path / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(10)}))
        return path


def eight_bits(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Any bytes."""
    low, high = (-127, 128) if dtype == torch.int8 else (0, 256)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def words(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Any words of 32 bits."""
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def scales(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scales above 0."""
    return (torch.rand(shape, generator=generator) / 100 + 1e-3).to(dtype)


def fp8(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Floats of 8 bits."""
    return (torch.randn(shape, generator=generator) * 10).to(torch.float8_e4m3fn)


def exponents(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Exponents of blocks, as 8 bits without a sign; skips the test if torch has no such dtype (before 2.7)."""
    if not hasattr(torch, "float8_e8m0fnu"):
        pytest.skip("this torch has no float8_e8m0fnu")
    return (eight_bits(generator, *shape) // 2).view(torch.float8_e8m0fnu)  # 255 is NaN
