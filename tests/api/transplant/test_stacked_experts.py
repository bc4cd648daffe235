"""Outputs with stacked experts say so, and the command in the note gives each expert its own tensors again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
EXPERTS = {
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8}),
}
NOTE = "the keys are those of the network that transformers 5 builds, with the experts of a layer in one tensor "
BACK = "ckpt convert OUT --layout transformers -o NAME/"


def saved(kind: str, folder: str) -> dict[str, torch.Tensor]:
    name, fields = EXPERTS[kind]
    config = transformers.CONFIG_MAPPING[kind](**SIZES, **fields)
    getattr(transformers, name)(config).save_pretrained(folder)
    return load_file(Path(folder, "model.safetensors"))


@pytest.mark.costly
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_resized_network_says_it_and_the_command_gives_the_tensors_back(kind: str) -> None:
    before = saved(kind, "a")
    plan = cs.resize("a", set={"num_hidden_layers": 1}, layers="first")
    [note] = [one for one in plan.notes if one.startswith(NOTE)]
    assert BACK in note
    cs.apply(plan, "b/")
    cs.apply(cs.convert("b", layout="transformers"), "c/")
    after = load_file(Path("c/model.safetensors"))
    assert {*after} == {key for key in before if ".layers.1." not in key}
    assert all(torch.equal(after[key], before[key]) for key in after)


@pytest.mark.costly
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_transplant_says_it_unless_the_source_has_stacked_experts(kind: str) -> None:
    saved(kind, "a")
    plan = cs.transplant("a", "a/config.json")
    assert sum(one.startswith(NOTE) and BACK in one for one in plan.notes) == 1
    cs.apply(plan, "b/")
    assert not [one for one in cs.transplant("b", "b/config.json").notes if one.startswith(NOTE)]


def test_a_dense_network_that_gets_experts_says_it() -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained("a")
    plan = cs.resize("a", model_type="mixtral", set={"num_local_experts": 4, "num_experts_per_tok": 2})
    assert any(one.startswith(NOTE) for one in plan.notes)
    assert not [one for one in cs.resize("a", set={"intermediate_size": 20}).notes if one.startswith(NOTE)]
