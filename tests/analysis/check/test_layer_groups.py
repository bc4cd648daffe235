"""Half of the layers with larger weights or scales than the others, in all roles: a shard of another model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

Tensors = dict[str, torch.Tensor]
Size = Callable[[int, str], float]
LAYERS, WIDTH = 8, 128
ROLES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def write(path: str, size: Size) -> Tensors:
    """Write plain weights of standard deviation 0.02 times ``size(layer, role)``, and return them."""
    draw, tensors = torch.Generator().manual_seed(0), Tensors()
    for layer in range(LAYERS):
        for role in ROLES:
            made = torch.randn(WIDTH, WIDTH, generator=draw) * 0.02 * size(layer, role)
            tensors[f"model.layers.{layer}.{role}.weight"] = made
    save_file(tensors, path)
    return tensors


def found(path: str) -> list[str]:
    row = cs.check(path).row("value-family")
    assert row.status.value != "NOT RUN"
    return [key for one in row.found for key in one.keys]


def layers_of(keys: list[str]) -> set[int]:
    return {int(key.split(".")[2]) for key in keys}


def spread(layer: int, role: str) -> float:
    """A spread as in trained models: up to 3 times as large in one layer as in another, in each role by itself."""
    return 3 ** (0.5 * math.sin(1.7 * layer + 2.3 * ROLES.index(role)))


@pytest.mark.costly
@pytest.mark.parametrize("factor", [16, 1 / 16, 32])
@pytest.mark.parametrize("scheme", ["", "int8", "fp8-channel", "int4-group128"])
def test_half_of_the_layers_are_named(scheme: str, factor: float) -> None:
    """The scales of one of two shards, multiplied; a layer may be in both shards."""
    write("plain.safetensors", spread)
    if scheme:
        cs.apply(cs.convert("plain.safetensors", quantize=scheme), "coded.safetensors")
    tensors = load_file("coded.safetensors" if scheme else "plain.safetensors")
    for key in tensors:
        layer = int(key.split(".")[2])
        is_there = layer >= LAYERS // 2 or (layer == LAYERS // 2 - 1 and "mlp" in key)
        if is_there and ("scale" in key or not scheme):
            tensors[key] = tensors[key] * factor
    save_file(tensors, "x.safetensors")
    named = layers_of(found("x.safetensors"))
    assert named >= (set(range(4, LAYERS)) if factor > 1 else set(range(3)))
    assert not named - set(range(3, LAYERS) if factor > 1 else range(4))


HEALTHY: dict[str, Size] = {
    "a spread in each role": spread,
    "larger from layer to layer": lambda layer, role: 6 ** (layer / LAYERS),
    "one role differs in half of the layers": lambda layer, role: 6 if "o_proj" in role and layer > 3 else 1,
    "every second layer of attention": lambda layer, role: 5 if "attn" in role and layer % 2 else 1,
    "other layers in each role": lambda layer, role: 5 if (layer + ROLES.index(role)) % 2 else 1,
    "all layers twice or three times as large": lambda layer, role: 3 if layer > 3 else 1,
    "the first layers": lambda layer, role: 5 if layer < 2 else 1,
}


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["", "int8"])
@pytest.mark.parametrize("size", HEALTHY)
def test_differences_of_trained_layers_are_no_faults(size: str, scheme: str) -> None:
    write("plain.safetensors", HEALTHY[size])
    if scheme:
        cs.apply(cs.convert("plain.safetensors", quantize=scheme), "coded.safetensors")
    assert found("coded.safetensors" if scheme else "plain.safetensors") == []


@pytest.mark.costly
@pytest.mark.parametrize(("factor", "notes"), [(1, 0), (3, 0), (16, 1)])
def test_verbs_that_decode_note_them(factor: float, notes: int) -> None:
    write("plain.safetensors", spread)
    Path("plain.safetensors").rename("model.safetensors")
    cs.apply(cs.convert("model.safetensors", quantize="int8"), "coded.safetensors")
    tensors = load_file("coded.safetensors")
    for key in tensors:
        if "scale" in key and int(key.split(".")[2]) >= LAYERS // 2:
            tensors[key] = tensors[key] * factor
    save_file(tensors, "x.safetensors")
    said = cs.apply(cs.convert("x.safetensors", dequantize=True), "out.safetensors").notes
    assert len([one for one in said if "those of every kind in some layers" in one]) == notes


@pytest.mark.parametrize(
    ("layer", "factor", "odd"), [(None, 1, False), (0, 40, True), (0, 1 / 300, True), (3, 40, True)]
)
def test_a_layer_with_few_inputs_has_larger_weights(layer: int | None, factor: float, odd: bool) -> None:
    """The first convolution of wav2vec 2.0 has one channel: it is initialised with far larger values."""
    draw, tensors = torch.Generator().manual_seed(0), Tensors()
    for n in range(6):
        inputs = 64 if n else 1
        made = torch.randn(64, inputs, 3, generator=draw) / math.sqrt(3 * inputs)
        tensors[f"conv_layers.{n}.conv.weight"] = made * (factor if n == layer else 1) / (1 if n else 0.5)
    save_file(tensors, "convolutions.safetensors")
    assert found("convolutions.safetensors") == ([f"conv_layers.{layer}.conv.weight"] if odd else [])
