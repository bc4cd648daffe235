"""Megatron-core's decoders: checkpoints as Megatron saves them, numbers of heads, and what is refused.

`fixtures/layouts/llama.py` recorded the networks, whose outputs Megatron computed on a CPU.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

GOLDEN = Path(__file__).resolve().parents[3] / "fixtures" / "golden"
QKV, PROJ = (f"decoder.layers.0.self_attention.linear_{kind}.weight" for kind in ("qkv", "proj"))
LAYOUTS = ("megatron", "megatron-local", "megatron-dist")


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording: Qwen 2 and 3 have 8 heads of queries, and 2 of keys and values."""
    return load_file(GOLDEN / "layouts" / f"llama.{network}" / f"{layout}.safetensors")


def test_each_group_has_its_queries_then_its_key_and_its_value() -> None:
    """Each row of a head of two rows has the number of the head."""
    plain = recorded("qwen2", "transformers")
    for kind, heads in (("q", range(8)), ("k", range(10, 12)), ("v", range(20, 22))):
        rows = torch.tensor(heads).repeat_interleave(2).float()
        plain[f"model.layers.0.self_attn.{kind}_proj.weight"] = rows[:, None].repeat(1, 16)
        plain[f"model.layers.0.self_attn.{kind}_proj.bias"] = rows
    made = converted(plain, "megatron", heads="8/2")
    wanted = torch.tensor([0, 1, 2, 3, 10, 20, 4, 5, 6, 7, 11, 21]).repeat_interleave(2).float()
    assert torch.equal(made[QKV], wanted[:, None].repeat(1, 16))
    assert torch.equal(made[QKV.replace("weight", "bias")], wanted)
    assert_same(converted(made, "transformers", heads="8/2"), plain)


@pytest.mark.costly
@pytest.mark.parametrize("network", ["qwen2", "qwen3"])
def test_a_distributed_checkpoint_that_megatron_saved(network: str) -> None:
    shutil.copytree(GOLDEN / "megatron_dist" / network, "iter_0000010")
    Path("iter_0000010/metadata").rename("iter_0000010/.metadata")
    shutil.copy(GOLDEN / "layouts" / f"llama.{network}" / "config.json", "iter_0000010")
    with cs.open_checkpoint("iter_0000010") as checkpoint:
        assert set(checkpoint) == recorded(network, "megatron-dist").keys()
    for layout in ("transformers", "megatron"):
        plan = cs.convert("iter_0000010", layout=layout)
        cs.apply(plan, f"{layout}.safetensors")
        assert cs.verify(f"{layout}.safetensors").ok
        assert_same(load_file(f"{layout}.safetensors"), recorded(network, layout))
        assert any("left out" in note and "_extra_state" in note for note in plan.notes)


def shared_out(tensors: Tensors) -> None:
    """Write the folders of two ranks of tensor parallelism: each has one group of heads, and half of the MLP's rows."""
    names = {"swiglu": True, "group_query_attention": True, "num_query_groups": 2, "tensor_model_parallel_size": 2}
    for rank in range(2):
        model = dict(tensors)
        for key, value in tensors.items():
            if "linear_fc1.weight" in key:
                model[key] = torch.cat([half.chunk(2)[rank] for half in value.chunk(2)])
            elif key.endswith(("linear_proj.weight", "linear_fc2.weight")):
                model[key] = value.chunk(2, 1)[rank].clone()
            elif key.endswith(("qkv.weight", "qkv.bias", "word_embeddings.weight", "output_layer.weight")):
                model[key] = value.chunk(2)[rank].clone()
        Path(f"run/mp_rank_{rank:02d}").mkdir(parents=True)
        state = {"args": argparse.Namespace(**names), "checkpoint_version": 3.0, "model": model}
        torch.save(state, f"run/mp_rank_{rank:02d}/model_optim_rng.pt")


@pytest.mark.parametrize(("network", "layout"), [("qwen2", "megatron"), ("qwen3", "megatron-local")])
def test_folders_of_ranks(network: str, layout: str) -> None:
    shared_out(recorded(network, layout))
    cs.apply(cs.convert("run", layout="transformers", heads="8/2"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert_same(load_file("out.safetensors"), recorded(network, "transformers"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_of_the_wrapper_is_removed(layout: str) -> None:
    """NeMo stores its networks as ``module.decoder…``."""
    wrapped = {f"module.{key}": value for key, value in recorded("qwen3", layout).items()}
    made, notes = converted_and_noted(wrapped, "transformers")
    assert "the prefix module. of all keys, which training added, is removed" in notes
    assert_same(made, recorded("qwen3", "transformers"))
    again, notes = converted_and_noted(wrapped, layout)
    assert "the tensors already have the layout" in notes
    assert_same(again, recorded("qwen3", layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tied_output_layer_is_stored_in_neither(layout: str) -> None:
    plain = recorded("qwen3", "transformers")
    del plain["lm_head.weight"]
    made = converted(plain, layout)
    assert made.keys() == recorded("qwen3", layout).keys() - {"output_layer.weight"}
    assert_same(converted(made, "transformers"), plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_of_heads_show_the_number_of_heads(layout: str) -> None:
    assert_same(converted(recorded("qwen3", layout), "transformers"), recorded("qwen3", "transformers"))
    with pytest.raises(PlanError, match="do not fit 4 heads of queries and 1 of keys with 4 rows in each head"):
        converted(recorded("qwen3", layout), "transformers", heads="4/1")
    with pytest.raises(PlanError, match="the number of heads of keys and values is not known"):
        converted(recorded("qwen2", layout), "transformers")


@pytest.mark.parametrize("heads", ["8/4", "8", "4/2", "16/2", "7/1"])
def test_heads_that_do_not_fit_are_an_error(heads: str) -> None:
    said = f"{QKV} has 24 rows and {PROJ} has 16 columns, which do not fit {heads.partition('/')[0]} heads of queries"
    with pytest.raises(PlanError, match=re.escape(said)):
        converted(recorded("qwen2", "megatron"), "transformers", heads=heads)


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ("megatron", "decoder.layers.1.self_attention.linear_qkv.layer_norm_weight"),
        ("megatron", "decoder.layers.1.self_attention.linear_qkv.weight"),
        ("megatron-local", "decoder.layers.1.pre_mlp_layernorm.weight"),
        ("megatron-local", "decoder.layers.0.mlp.linear_fc2.weight"),
        ("transformers", "model.layers.1.self_attn.k_norm.weight"),
    ],
)
def test_an_incomplete_layer_is_an_error(layout: str, lost: str) -> None:
    tensors = recorded("qwen3", layout)
    del tensors[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing|is not known"):
        converted(tensors, "megatron" if layout == "transformers" else "transformers")


def test_fewer_layers_of_a_stacked_tensor_are_an_error() -> None:
    tensors = recorded("qwen3", "megatron-dist")
    key = "decoder.layers.mlp.linear_fc2.weight"
    said = f"{key} of before.safetensors has 1 layer, but decoder.layers.self_attention.linear_qkv.weight has 2."
    with pytest.raises(PlanError, match=re.escape(said)):
        converted({**tensors, key: tensors[key][:1]}, "transformers")


def test_state_of_8_bit_training_is_left_out() -> None:
    tensors = recorded("qwen3", "megatron")
    states = {
        f"{module}._extra_state": torch.zeros(4, dtype=torch.uint8)
        for module in ("decoder.layers.0.mlp.linear_fc2", "decoder.layers.1.self_attention.linear_qkv", "output_layer")
    }
    made, notes = converted_and_noted({**tensors, **states}, "transformers")
    assert "left out: **._extra_state (3 tensors), the scales of 8-bit training" in notes
    assert_same(made, recorded("qwen3", "transformers"))


def test_networks_of_other_kinds_are_refused() -> None:
    """An MLP without gates, an attention with gates, and biases of a norm."""
    tensors = recorded("qwen3", "megatron")
    for key, name in (("fc1", "is not known"), ("qkv", "rows and"), ("bias", "no name in the layout transformers")):
        odd = dict(tensors)
        if key == "fc1":
            odd |= {name: value[:12] for name, value in tensors.items() if "linear_fc1.weight" in name}
        elif key == "qkv":
            odd |= {one: torch.cat([value, value]) for one, value in tensors.items() if "linear_qkv.weight" in one}
        else:
            odd["decoder.final_layernorm.bias"] = torch.ones(16)
        with pytest.raises(PlanError, match=name):
            converted(odd, "transformers", heads="8/2")


def test_a_transplant_into_a_configuration_converts() -> None:
    config = GOLDEN / "layouts" / "llama.qwen3" / "config.json"
    save_file(recorded("qwen3", "megatron"), "megatron.safetensors")
    cs.apply(cs.transplant("megatron.safetensors", config), "made")
    assert_same(load_file("made/model.safetensors"), recorded("qwen3", "transformers"))
    plan = cs.rename("megatron.safetensors", layout="transformers")
    assert any(
        "from the layout of Megatron-core with Transformer Engine, Megatron-Bridge, NeMo to that of tr" in note
        for note in plan.notes
    )


def test_a_configuration_beside_megatron_s_own_names_finds_nothing_missing() -> None:
    from ckptsurgeon.api.model_folder.weights.part_checks import part_notes
    from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor

    own = load_file(GOLDEN / "layouts" / "llama" / "megatron-local.safetensors")
    described = [DescribedTensor(key, "float32", tuple(value.shape)) for key, value in own.items()]
    assert not any("every llama model has" in note for note in part_notes(described, {"model_type": "llama"}))


@pytest.mark.parametrize("lost", ["decoder.final_layernorm.weight", "linear_qkv.layer_norm_weight", "nothing"])
def test_what_every_layer_lacks_is_said_after_the_conversion(lost: str) -> None:
    own = load_file(GOLDEN / "layouts" / "llama" / "megatron.safetensors")
    save_file({key: value for key, value in own.items() if not key.endswith(lost)}, "model.safetensors")
    shutil.copy(GOLDEN / "layouts" / "llama" / "config.json", "config.json")
    plan = cs.convert("model.safetensors", layout="transformers")
    said = [note for note in plan.notes if "every llama model has" in note]
    assert bool(said) == (lost != "nothing")
