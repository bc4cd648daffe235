"""Scales of activations and of the KV cache that are zero, negative or inverse: a note by every verb, and a finding."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

LAYERS = 6
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def fp8(dtype: torch.dtype = torch.float32, number: int = LAYERS) -> dict[str, torch.Tensor]:
    """A model with static scales of activations and of the KV cache, as compressed-tensors writes it."""
    draw, found = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for layer in range(number):
        for module in MODULES:
            name = f"model.layers.{layer}.{module}"
            codes = torch.randn(64, 64, generator=draw).clamp(-3, 3) * 100
            found[f"{name}.weight"] = codes.to(torch.float8_e4m3fn)
            found[f"{name}.weight_scale"] = torch.tensor([2e-4], dtype=dtype)
            scale = 0.02 * (1 + torch.rand(1, generator=draw))
            found[f"{name}.input_scale"] = scale.to(dtype)
        for name in ("k_scale", "v_scale"):
            found[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor([0.05], dtype=dtype)
    return found


def found_in(state: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Return the notes of inspect and what check says of scales of activations."""
    save_file(state, "x.safetensors")
    rows = [one.what for row in cs.check("x.safetensors").rows for one in row.found if one.status != Status.PASS]
    said = [note for note in cs.inspect("x.safetensors").notes if "scales of activations" in note]
    return said, [what for what in rows if "scales" in what]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sound_scales_get_no_note(dtype: torch.dtype) -> None:
    assert found_in(fp8(dtype)) == ([], [])


@pytest.mark.costly
@pytest.mark.parametrize("lowest", [0.01, 0.0])
def test_scales_of_many_channels_are_read(lowest: float) -> None:
    state = fp8()
    for layer in range(LAYERS):
        state[f"model.layers.{layer}.self_attn.k_scale"] = torch.linspace(0.01, 0.05, 128)
    state["model.layers.2.self_attn.k_scale"][7] = lowest
    assert list(map(bool, found_in(state))) == [lowest == 0] * 2


@pytest.mark.parametrize("value", [0.0, -0.04])
@pytest.mark.parametrize("key", ["self_attn.k_scale", "self_attn.v_scale", "mlp.up_proj.input_scale"])
def test_scales_of_zero_or_below_are_said(key: str, value: float) -> None:
    state = fp8()
    state[f"model.layers.2.{key}"] = torch.tensor([value])
    said, found = found_in(state)
    assert said == [
        "1 tensor of scales of activations or of the KV cache has values of 0 or below: model.layers.2." + key
    ]
    assert len(found) == 1


def test_the_value_of_an_unset_scale_is_no_fault() -> None:
    state = fp8()
    state["model.layers.2.self_attn.k_scale"] = torch.tensor([-1.0])
    assert found_in(state) == ([], [])


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inverse_scales_of_one_layer_are_said(dtype: torch.dtype) -> None:
    state = fp8(dtype)
    keys = [key for key in state if key.startswith("model.layers.3.") and key.endswith("input_scale")]
    for key in keys:
        state[key] = 1 / state[key]
    said, found = found_in(state)
    assert len(said) == len(found) == 1
    assert "4 tensors of scales of activations are perhaps inverse" in said[0]
    assert all(key in said[0] for key in keys)
    assert said[0] in cs.convert("x.safetensors").notes
    assert any(said[0] in note for note in cs.average(["x.safetensors", "x.safetensors"]).notes)


def test_very_large_activations_of_one_layer_are_no_fault() -> None:
    """The inputs of a down projection have no bound: in one layer of many models they are very large."""
    state = fp8()
    state["model.layers.1.mlp.down_proj.input_scale"] = torch.tensor([45.0])
    state["model.layers.1.self_attn.q_proj.input_scale"] = torch.tensor([1.0])
    assert found_in(state) == ([], [])


def test_too_few_layers_say_nothing() -> None:
    state = fp8(number=2)
    state["model.layers.1.self_attn.q_proj.input_scale"] = torch.tensor([45.0])
    assert found_in(state) == ([], [])


def test_plain_models_may_have_tensors_of_these_names() -> None:
    save_file({"attn.q_scale": torch.tensor([-0.3]), "attn.weight": torch.randn(8, 8)}, "x.safetensors")
    assert not [note for note in cs.inspect("x.safetensors").notes if "scale" in note]
