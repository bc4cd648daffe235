"""A sample of matrices has one of each layer, in different roles."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.checkpoint.values.value_notes import MATRICES, sampled_matrices

ROLES = ("attn.k", "attn.o", "attn.q", "attn.v", "mlp.down", "mlp.gate", "mlp.up")


def model(layers: int, roles: tuple[str, ...] = ROLES) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    keys = [
        "embed.weight",
        "head.weight",
        *(f"layers.{layer}.{role}.weight" for layer in range(layers) for role in roles),
    ]
    return {key: 0.02 * torch.randn(64, 64, generator=draw) for key in keys}


def looked_at(layers: int, roles: tuple[str, ...] = ROLES) -> list[list[str]]:
    save_file(model(layers, roles), "x.safetensors")
    with open_checkpoint("x.safetensors") as checkpoint:
        keys = [one.key for one in sampled_matrices(checkpoint, checkpoint.open_files())]
    assert len(keys) == len(set(keys)) <= MATRICES
    return [key.split(".") for key in keys]


@pytest.mark.parametrize("layers", [6, 12, 24, 32])
@pytest.mark.parametrize("number", [4, 6, 7, 8])
def test_every_layer_and_every_role_is_looked_at(layers: int, number: int) -> None:
    roles = (*ROLES, "mlp.other")[:number]
    keys = looked_at(layers, roles)
    assert {key[1] for key in keys if key[0] == "layers"} == {str(layer) for layer in range(layers)}
    found = Counter(".".join(key[2:4]) for key in keys if key[0] == "layers")
    assert found.keys() == {*roles}
    assert min(found.values()) >= 2


@pytest.mark.parametrize("layers", [33, 48, 80])
def test_as_many_layers_as_possible_are_looked_at(layers: int) -> None:
    keys = looked_at(layers)
    assert len({key[1] for key in keys}) == MATRICES
    assert len({key[3] for key in keys}) == len(ROLES)


@pytest.mark.parametrize("layer", range(32))
def test_a_layer_of_codes_is_noted_wherever_it_is(layer: int) -> None:
    state = model(32)
    for key, value in state.items():
        if key.startswith(f"layers.{layer}."):
            value.copy_(torch.randint(-127, 128, (64, 64)))
    save_file(state, "x.safetensors")
    assert any(f"without their scales: layers.{layer}." in note for note in cs.inspect("x.safetensors").notes)
