"""Adapters of stacked experts (PEFT's target_parameters): they merge and convert as PEFT itself merges them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, FormatError, PlanError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")  # of PEFT
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
SIZES = {
    "vocab_size": 20, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


def qwen() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"moe_intermediate_size": 12, "num_experts": 3, "num_experts_per_tok": 2, "head_dim": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **sizes))


def mixtral(**sizes: Any) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**{**SIZES, **sizes}, num_local_experts=3))


def trained(model: Any, **settings: Any) -> None:
    """Save ``base``, an adapter of it in ``adapter``, and what PEFT makes of both in ``merged``."""
    peft = pytest.importorskip("peft")

    torch.manual_seed(0)
    model.save_pretrained("base")
    given: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], **settings}
    tuned = peft.get_peft_model(model, peft.LoraConfig(**given))
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.5)
    tuned.save_pretrained("adapter")
    tuned.merge_and_unload().save_pretrained("merged")


def tensors(folder: str) -> dict[str, torch.Tensor]:
    return {key: value for file in sorted(Path(folder).glob("*.safetensors")) for key, value in load_file(file).items()}


def assert_close(found: str, wanted: str) -> None:
    here, there = tensors(found), tensors(wanted)
    assert here.keys() == there.keys()
    for key, value in there.items():
        torch.testing.assert_close(here[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("make", [qwen, mixtral])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_parameters": [GATE_UP, DOWN]},
        {"target_parameters": [DOWN, GATE_UP], "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"gate_up_proj": 5}},
        {"target_parameters": [DOWN]},
        {"target_parameters": [GATE_UP], "rank_pattern": {"layers.1.mlp.experts.gate_up_proj": 4}},
    ],
    ids=["both", "other ranks", "down", "other ranks in a layer"],
)
def test_an_adapter_of_stacked_experts_is_merged_as_peft_merges_it(
    make: Callable[[], Any], settings: dict[str, Any]
) -> None:
    trained(make(), **settings)
    plan = cs.lora_merge("base", ["adapter"])
    assert any("the LoRA of stacked experts is read as one of single experts (3 experts" in one for one in plan.notes)
    cs.apply(plan, "out/")
    assert cs.verify("out/").ok
    assert_close("out", "merged")
    rows = {row.id: row for row in cs.check("adapter", base="base").rows}
    for one in ("adapter-base", "adapter-shapes", "adapter-config"):
        assert not rows[one].found, rows[one].found


def test_an_adapter_of_experts_that_the_base_lacks_is_a_fault() -> None:
    trained(qwen(), target_parameters=[DOWN])
    state = tensors("base")
    save_file({key: value for key, value in state.items() if "layers.1.mlp.experts" not in key}, "less.safetensors")
    rows = {row.id: row for row in cs.check("adapter", base="less.safetensors").rows}
    assert "model.layers.1.mlp.experts" in rows["adapter-base"].found[0].what


@pytest.mark.costly
@pytest.mark.parametrize("make", [qwen, mixtral])
def test_an_adapter_of_every_linear_layer_is_merged_with_its_routers(make: Callable[[], Any]) -> None:
    """PEFT makes parameters of ``all-linear``: the experts, and the matrix of the router."""
    trained(make(), target_modules="all-linear", rank_pattern={"gate.weight": 3}, alpha_pattern={"mlp.gate.weight": 5})
    assert "gate.weight" in json.loads(Path("adapter/adapter_config.json").read_text())["target_parameters"]
    cs.apply(cs.lora_merge("base", ["adapter"]), "out/")
    assert_close("out", "merged")
    base, router = tensors("base"), next(key for key in tensors("out") if key.endswith(".gate.weight"))
    assert not torch.equal(tensors("out")[router], base[router])


@pytest.mark.long
@pytest.mark.parametrize("make", [qwen, mixtral])
def test_it_becomes_an_adapter_of_single_experts(make: Callable[[], Any]) -> None:
    trained(make(), target_parameters=[GATE_UP, DOWN], rank_pattern={"down_proj": 3})
    cs.apply(cs.lora_convert("adapter", to="peft"), "single/")
    assert cs.verify("single/").ok
    assert "target_parameters" not in json.loads(Path("single/adapter_config.json").read_text())
    for name in ("adapter", "single"):
        cs.apply(cs.lora_merge("base", [name]), f"{name}-merged/")
    one, other = tensors("adapter-merged"), tensors("single-merged")
    assert all(torch.equal(other[key], value) for key, value in one.items())
    cs.apply(cs.lora_concat(["adapter", "adapter"], weights=[0.5, 0.5]), "twice/")
    cs.apply(cs.lora_merge("base", ["twice"]), "twice-merged/")
    assert_close("twice-merged", "merged")


def test_peft_itself_loads_the_single_experts_into_stacked_ones() -> None:
    import transformers

    peft = pytest.importorskip("peft")
    trained(qwen(), target_parameters=[GATE_UP, DOWN])
    cs.apply(cs.lora_convert("adapter", to="peft"), "single/")
    outputs = []
    for name in ("adapter", "single"):
        model = transformers.AutoModelForCausalLM.from_pretrained("base")
        with torch.no_grad():
            outputs.append(peft.PeftModel.from_pretrained(model, name).eval()(torch.arange(8)[None]).logits)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


def test_factors_that_do_not_fit_are_an_error() -> None:
    trained(qwen(), target_parameters=[GATE_UP, DOWN])
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    Path("adapter/adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(FormatError, match="do not fit stacked experts, for the rank 4"):
        cs.lora_merge("base", ["adapter"])
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    state = load_file("adapter/adapter_model.safetensors")
    lost = next(key for key in state if "base_layer.lora_B" in key)
    save_file({key: value for key, value in state.items() if key != lost}, "adapter/adapter_model.safetensors")
    with pytest.raises(FormatError, match="do not fit stacked experts"):
        cs.lora_merge("base", ["adapter"])


@pytest.mark.costly
@pytest.mark.parametrize(
    "fields",
    [
        {"base_model_name_or_path": "openai/gpt-oss-20b"},
        {"target_parameters": ["mlp.experts.bias"]},
        {"target_parameters": [3]},
    ],
)
def test_other_parameters_are_left_to_peft(fields: dict[str, Any]) -> None:
    trained(qwen(), target_parameters=[DOWN])
    path = Path("adapter/adapter_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ConfigError, match="sets target_parameters") as error:
        cs.lora_merge("base", ["adapter"])
    assert "merge_and_unload" in error.value.hint


def unnamed() -> None:
    """Remove the names of the model and of its class from the adapter's configuration."""
    path = Path("adapter/adapter_config.json")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "auto_mapping": None, "base_model_name_or_path": "./mine"}))


def test_stacks_of_a_model_without_a_known_name_stay_stacked() -> None:
    """Files of Mixtral have other names of single experts, and PEFT loads any other names without effect."""
    import transformers

    peft = pytest.importorskip("peft")
    trained(mixtral(intermediate_size=8), target_parameters=[GATE_UP, DOWN])
    cs.apply(cs.lora_convert("adapter", to="peft"), "single/")
    unnamed()
    for name, base in (("stacked", None), ("based", "base")):
        cs.apply(cs.lora_convert("adapter", to="peft", base=base), f"{name}/")
        cs.apply(cs.lora_merge("base", [name]), f"{name}-merged/")
        assert_close(f"{name}-merged", "merged")
    outputs = []
    for name in ("adapter", "single", "stacked"):
        model = transformers.AutoModelForCausalLM.from_pretrained("base")
        with torch.no_grad():
            outputs.append(peft.PeftModel.from_pretrained(model, name).eval()(torch.arange(8)[None]).logits)
    for one in outputs[1:]:
        torch.testing.assert_close(one, outputs[0], rtol=1e-5, atol=1e-6)


def test_names_of_single_experts_are_those_of_the_base_or_of_another_adapter() -> None:
    trained(mixtral(), target_parameters=[GATE_UP, DOWN])
    cs.apply(cs.lora_convert("adapter", to="peft"), "single/")
    unnamed()
    with pytest.raises(PlanError, match="4 stacks of experts") as error:
        cs.lora_convert("adapter", to="diffusers", component="transformer")
    assert "--base" in error.value.hint
    plan = cs.lora_convert("adapter", to="diffusers", component="transformer", base="base")
    assert any("block_sparse_moe.experts.0.w1" in step.key for step in plan.steps)
    assert not any(".mlp.experts." in step.key for step in plan.steps)
    said = json.loads(Path("single/adapter_config.json").read_text())
    Path("single/adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": "./mine"}))
    joined = cs.lora_concat(["adapter", "single"])
    assert {step.key for step in joined.steps} == set(tensors("single"))
