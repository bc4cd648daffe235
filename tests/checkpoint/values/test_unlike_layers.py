"""A norm or bias of one layer that is zeros, or random numbers, unlike those of the other layers, is said."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

ZEROS = "1 norm or bias is all zeros, unlike the same tensor of other layers: "
AROUND = "1 norm has values around 0, but in other layers such norms have about equal values"
BIAS, NORM = "layers.2.attn.k_proj.bias", "layers.2.input_layernorm.weight"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def network(layers: int = 5, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    state = {}
    for number in range(layers):
        state[f"layers.{number}.attn.k_proj.bias"] = torch.randn(64, generator=draw) / 10
        state[f"layers.{number}.attn.k_proj.weight"] = torch.randn(64, 96, generator=draw) / 10
        state[f"layers.{number}.input_layernorm.weight"] = 1 + torch.randn(96, generator=draw) / 10
    return {key: one.to(dtype) for key, one in state.items()}


def said(state: Mapping[str, torch.Tensor], text: str) -> list[str]:
    """Which of inspect, convert and check say it; check looks at all layers, and words it as its own finding."""
    save_file(dict(state), "m.safetensors")
    checked = [one.what for row in cs.check("m.safetensors").rows for one in row.found]
    notes = {"inspect": cs.inspect("m.safetensors").notes, "convert": cs.convert("m.safetensors").notes}
    return [verb for verb, found in {**notes, "check": checked}.items() if any(text in one for one in found)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [BIAS, NORM])
def test_zeros_of_one_layer_are_said(key: str, dtype: torch.dtype) -> None:
    state = network(dtype=dtype)
    assert said(state, "all zeros") == []
    state[key] = torch.zeros_like(state[key])
    assert said(state, f"{ZEROS}{key}") == ["inspect", "convert"]
    assert said(state, "all zeros") == ["inspect", "convert", "check"]


def test_biases_that_are_often_zeros_are_not() -> None:
    """Those of keys are zeros in some converted models, and those of new layers."""
    state = network()
    for number in (1, 2):
        state[f"layers.{number}.attn.k_proj.bias"].zero_()
    assert said(state, "all zeros") == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_of_random_numbers_is_said(dtype: torch.dtype) -> None:
    state = network(dtype=dtype)
    assert said(state, "values around 0") == []
    state[NORM] = (torch.randn(96, generator=torch.Generator().manual_seed(1)) / 50).to(dtype)
    assert said(state, AROUND) == ["inspect", "convert", "check"]
    assert any(NORM in note for note in cs.inspect("m.safetensors").notes)


def test_norms_around_zero_in_every_layer_are_not() -> None:
    """Gemma adds 1 to the weights of its norms; a norm of the last layers may be far from the others."""
    state = network()
    for number in range(5):
        draw = torch.Generator().manual_seed(number)
        state[f"layers.{number}.input_layernorm.weight"] = (
            torch.randn(96, generator=draw) * (number + 1) / 9
        ).bfloat16()
    assert said(state, "values around 0") == []


def test_three_layers_are_too_few() -> None:
    state = network(layers=3)
    state[NORM] = torch.zeros_like(state[NORM])
    assert said(state, ZEROS) == []
