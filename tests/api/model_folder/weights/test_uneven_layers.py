"""Layers of one model whose tensors differ in shape, plain or quantised: one of them is another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SETTINGS = {
    "plain": {},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": True},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


def projection(kind: str, rows: int) -> dict[str, torch.Tensor]:
    """A linear layer of 16 columns, as stored by a method of quantisation."""
    if kind == "gptq":
        words = torch.zeros(2, rows, dtype=torch.int32)
        zeros = torch.zeros(2, rows // 8, dtype=torch.int32)
        return {"qweight": words, "qzeros": zeros, "scales": torch.ones(2, rows, dtype=torch.float16)}
    if kind == "bitsandbytes":
        return {
            "weight": torch.zeros(rows * 8, 1, dtype=torch.uint8),
            "weight.absmax": torch.ones(rows * 16 // 64),
            "weight.quant_map": torch.ones(16),
            "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
        }
    return {"weight": torch.ones(rows, 16)}


def model(kind: str, *rows: int) -> None:
    Path("m").mkdir()
    state = {f"model.layers.{i}.mlp.up_proj.{end}": value
             for i, number in enumerate(rows) for end, value in projection(kind, number).items()}  # fmt: skip
    save_file(state, "m/model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": len(rows), "quantization_config": SETTINGS[kind]}
    Path("m/config.json").write_text(json.dumps(config))


def notes() -> list[str]:
    return [note for note in cs.inspect("m").notes if "are alike" in note]


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("plain", "is (16, 16)", "is (32, 16)"),
        ("gptq", "has 16 rows", "has 32 rows"),
        ("bitsandbytes", "has 256 parameters", "has 512 parameters"),
    ],
)
def test_layers_of_two_sizes_are_noted(kind: str, one: str, two: str) -> None:
    model(kind, 16, 32)
    key = "model.layers.{}.mlp.up_proj.weight"
    (note,) = notes()
    assert note.startswith(f"{key.format(0)} {one}, but {key.format(1)} {two}: layers of llama are alike")


@pytest.mark.parametrize("kind", SETTINGS)
def test_layers_of_one_size_are_not(kind: str) -> None:
    model(kind, 32, 32, 32)
    assert not notes()
