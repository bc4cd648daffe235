"""Megatron-core's decoders with layer norms and biases: GPT-2 and GPT-NeoX.

`fixtures/layouts/gpt2.py` and `gpt_neox.py` recorded the networks, whose outputs Megatron computed on a CPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
LAYOUTS = ("megatron", "megatron-local", "megatron-dist")
NETWORKS = {"gpt2": "2", "gpt-neox.serial": "3"}
"""The networks, and their numbers of heads."""
LAYER = "decoder.layers.0."


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


@pytest.mark.long
def test_each_head_has_its_queries_then_its_keys_and_values() -> None:
    """Each column of a head of eight columns has the number of the head."""
    plain = converted(recorded("gpt2", "megatron"), "transformers", heads="2")
    numbers = torch.tensor([0, 1, 10, 11, 20, 21]).repeat_interleave(8).float()
    plain["transformer.h.0.attn.c_attn.weight"] = numbers.repeat(16, 1)
    plain["transformer.h.0.attn.c_attn.bias"] = numbers
    made = converted(plain, "megatron", heads="2")
    wanted = torch.tensor([0, 10, 20, 1, 11, 21]).repeat_interleave(8).float()
    assert torch.equal(made[f"{LAYER}self_attention.linear_qkv.weight"], wanted[:, None].repeat(1, 16))
    assert torch.equal(made[f"{LAYER}self_attention.linear_qkv.bias"], wanted)
    assert_same(converted(made, "transformers", heads="2"), plain)


@pytest.mark.costly
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_as_that_of_its_family(layout: str) -> None:
    for network in NETWORKS:
        found = cs.layouts(RECORDED / network / f"{layout}.safetensors").found
        assert [(one.family, one.layout) for one in found] == [(network.partition(".")[0], layout)]


@pytest.mark.costly
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_output_layer_of_gpt_2_is_not_stored(layout: str) -> None:
    nano = recorded("gpt2", "nanogpt")
    made, notes = converted_and_noted(nano, layout, heads="2")
    assert "left out: lm_head, since Megatron-core" in notes
    assert_same(made, recorded("gpt2", layout))
    assert "which GELU Megatron computes" in notes


@pytest.mark.parametrize("stated", [{"use_parallel_residual": True}, {}])
def test_networks_with_a_parallel_residual_are_refused(stated: dict[str, bool]) -> None:
    """It is transformers' default."""
    folder = RECORDED / "gpt-neox"
    config = json.loads((folder / "config.json").read_text())
    del config["use_parallel_residual"]
    Path("config.json").write_text(json.dumps({**config, **stated}))
    for there, here in (("megatron", "transformers"), ("transformers", "megatron")):
        source = (folder if here == "transformers" else RECORDED / "gpt-neox.serial") / f"{here}.safetensors"
        Path("model.safetensors").write_bytes(source.read_bytes())
        with pytest.raises(PlanError, match="which Megatron-core's layers cannot compute") as caught:
            cs.convert("model.safetensors", layout=there)
        assert "cannot be converted between the layout megatron and another one" in str(caught.value)


def test_without_a_configuration_a_note_says_which_networks_megatron_computes() -> None:
    _, notes = converted_and_noted(recorded("gpt-neox.serial", "transformers"), "megatron")
    assert "config.json must have use_parallel_residual: false" in notes


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_mlp_with_gates_and_fewer_keys_are_refused(network: str, layout: str) -> None:
    tensors = recorded(network, layout)
    for part in ("fc1", "qkv"):
        odd = {
            key: torch.cat([value, value], -2) if key.endswith(f"{part}.weight") else value
            for key, value in tensors.items()
        }
        with pytest.raises(PlanError, match="is not known|no name in the layout transformers of the family llama"):
            converted(odd, "transformers", heads=NETWORKS[network])


@pytest.mark.parametrize("lost", ["self_attention.linear_qkv.layer_norm_bias", "mlp.linear_fc1.bias"])
def test_an_incomplete_layer_is_an_error(lost: str) -> None:
    for network, heads in NETWORKS.items():
        tensors = recorded(network, "megatron")
        del tensors[f"decoder.layers.1.{lost}"]
        with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing"):
            converted(tensors, "transformers", heads=heads)


@pytest.mark.long
def test_states_of_8_bit_training_are_left_out() -> None:
    tensors = recorded("gpt2", "megatron")
    state = {f"{LAYER}mlp.linear_fc2._extra_state": torch.zeros(4, dtype=torch.uint8)}
    made, notes = converted_and_noted({**tensors, **state}, "transformers", heads="2")
    assert "left out: **._extra_state" in notes
    assert_same(made, converted(tensors, "transformers", heads="2"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_must_be_known_and_fit(layout: str) -> None:
    with pytest.raises(PlanError, match="the number of attention heads is not known"):
        converted(recorded("gpt2", layout), "transformers")
    with pytest.raises(PlanError, match=r"(48|linear_qkv|c_attn)"):
        converted(recorded("gpt2", layout), "transformers", heads="5")


def test_a_transplant_into_a_configuration_converts() -> None:
    save_file(recorded("gpt2", "megatron"), "megatron.safetensors")
    cs.apply(cs.transplant("megatron.safetensors", RECORDED / "gpt2" / "config.json"), "made")
    assert_same(load_file("made/model.safetensors"), converted(recorded("gpt2", "megatron"), "transformers", heads="2"))
