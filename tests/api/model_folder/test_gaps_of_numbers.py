"""Layers and experts that are not numbered without gaps are noted, with and without a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
NAMES = ("input_layernorm.weight", *(f"self_attn.{one}_proj.weight" for one in "qkvo"), "mlp.up_proj.weight")


def notes(keys: list[str], config: dict[str, object] | None = None) -> list[str]:
    Path("m").mkdir(exist_ok=True)
    save_file({key: torch.ones(4, 4) for key in keys}, "m/model.safetensors")
    if config is not None:
        Path("m/config.json").write_text(json.dumps(config))
    return [one for one in cs.inspect("m").notes if " up to " in one or "but no tensor of" in one]


def experts(*numbers: int, layers: int = 1) -> list[str]:
    stem = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"
    return [
        stem.format(layer, number, part) for layer in range(layers) for number in numbers for part in ("w1", "w2", "w3")
    ]


def test_experts_with_gaps_are_noted() -> None:
    place = "model.layers.0.block_sparse_moe.experts has experts"
    assert notes(experts(0, 1, 2, 9)) == [f"{place} 0 to 9, but no tensor of expert 3 and 5 more"]
    (note,) = notes(experts(0, 1, 2, 9), MIXTRAL)
    assert note == f"{place} up to 9 but lacks 6 experts (the first is 3): transformers initialises what is missing"
    Path("m/config.json").unlink()
    assert notes(experts(0, 1, 12, 13, layers=2)) == [f"{place} 0 to 13, but no tensor of expert 2 and 9 more"]


@pytest.mark.parametrize("keys", [experts(0, 1, 2, 3), experts(4, 5, 6), experts(0, 1, 10, 11)])
def test_experts_of_a_part_of_a_model_are_not(keys: list[str]) -> None:
    assert notes(keys) == []


def test_experts_without_gaps_are_not() -> None:
    assert notes(experts(0, 1, 2, 3, layers=2), MIXTRAL) == []


@pytest.mark.parametrize("config", [None, {"model_type": "llama"}, {"model_type": "llama", "num_hidden_layers": 4}])
def test_layers_with_gaps_are_noted(config: dict[str, object] | None) -> None:
    keys = [f"model.layers.{number}.{name}" for number in (0, 1, 2, 9) for name in NAMES]
    (note,) = notes(keys, config)
    assert note.startswith(
        ("model.layers has layers 0 to 9, but no tensor of layer 3", "model.layers has layers up to 9")
    )
