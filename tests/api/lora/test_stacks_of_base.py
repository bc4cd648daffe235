"""Adapters of stacked experts whose base stores the stacks themselves, as gpt-oss does: they merge as PEFT merges them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import adding_lora
from ckptsurgeon.errors import FormatError, PlanError
from ckptsurgeon.planning.plan.compute import Lora, LoraTerm

from .test_stacked_experts import DOWN, GATE_UP, assert_close, qwen, tensors, trained

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning")  # of PEFT


def gpt_oss(width: int = 96) -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": width, "num_hidden_layers": 2, "head_dim": 32}
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **experts, num_attention_heads=2, num_key_value_heads=1))
    for key, value in model.named_parameters():
        if key.endswith("_bias"):
            torch.nn.init.zeros_(value)  # which transformers leaves as memory had it
    return model


@pytest.mark.long
@pytest.mark.parametrize(
    ("width", "settings"),
    [
        (96, {"target_parameters": [GATE_UP, DOWN]}),
        (64, {"target_parameters": [DOWN]}),
        (64, {"target_parameters": [DOWN, GATE_UP], "rank_pattern": {"down_proj": 3}, "alpha_pattern": {"up_proj": 5}}),
    ],
    ids=["both", "square", "other ranks"],
)
def test_an_adapter_of_gpt_oss_is_merged_as_peft_merges_it(width: int, settings: dict[str, Any]) -> None:
    trained(gpt_oss(width), **settings)
    plan = cs.lora_merge("base", ["adapter"])
    assert not any("PEFT ignores" in one for one in plan.notes)
    cs.apply(plan, "out/")
    assert cs.verify("out/").ok
    assert_close("out", "merged")
    base = tensors("base")
    assert any(not torch.equal(value, base[key]) for key, value in tensors("out").items() if ".experts." in key)
    rows = {row.id: row for row in cs.check("adapter", base="base").rows}
    assert not rows["adapter-base"].found
    assert not rows["adapter-shapes"].found


def test_the_size_of_blocks_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(gpt_oss(), target_parameters=[GATE_UP, DOWN])
    cs.apply(cs.lora_merge("base", ["adapter"]), "whole.safetensors")
    monkeypatch.setattr(adding_lora, "ADAPTING_ELEMENTS", 1000)  # a few rows of one expert
    cs.apply(cs.lora_merge("base", ["adapter"]), "parts.safetensors")
    whole, parts = load_file("whole.safetensors"), load_file("parts.safetensors")
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def as_mxfp4(name: str) -> None:
    """Make a folder like ``base`` whose experts are random codes of mxfp4, as OpenAI publishes them."""
    shutil.copytree("base", name)
    random, state = torch.Generator().manual_seed(0), {}
    for key, value in tensors("base").items():
        if not key.endswith((GATE_UP, DOWN)):
            state[key] = value.bfloat16()
            continue
        experts, inputs, outputs = value.shape
        shape = (experts, outputs, inputs // 32)
        state[f"{key}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=random, dtype=torch.uint8)
        state[f"{key}_scales"] = torch.randint(118, 124, shape, generator=random, dtype=torch.uint8)
    save_file(state, f"{name}/model.safetensors", {"format": "pt"})
    config = json.loads(Path("base/config.json").read_text())
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    Path(f"{name}/config.json").write_text(json.dumps(config))


@pytest.mark.long
def test_a_base_of_mxfp4_is_decoded_and_encoded_again() -> None:
    trained(gpt_oss(), target_parameters=[GATE_UP, DOWN])
    as_mxfp4("codes")
    cs.apply(cs.convert("codes", dequantize=True, dtype="float32"), "plain/")
    cs.apply(cs.lora_merge("plain", ["adapter"]), "wanted/")
    cs.apply(cs.lora_merge("codes", ["adapter"], encoding="dequantize", dtype="float32"), "decoded/")
    wanted, decoded = tensors("wanted"), tensors("decoded")
    assert all(torch.equal(decoded[key], value) for key, value in wanted.items())

    cs.apply(cs.lora_merge("codes", ["adapter"]), "kept/")
    assert cs.verify("kept/").ok
    assert tensors("kept").keys() == tensors("codes").keys()
    cs.apply(cs.convert("kept", dequantize=True, dtype="float32"), "again/")
    again = tensors("again")
    for key in wanted:
        if key.endswith((GATE_UP, DOWN)):
            assert (again[key] - wanted[key]).norm() < 0.15 * wanted[key].norm()
    assert not {row.id: row for row in cs.check("adapter", base="codes").rows}["adapter-base"].found


def stacked(folder: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder with single experts, with those of a layer stacked as (experts, out, in)."""
    state = tensors(folder)
    made = {key: value for key, value in state.items() if ".experts." not in key}
    for layer in (0, 1):
        name = f"model.layers.{layer}.mlp.experts"
        ups = [torch.cat([state[f"{name}.{i}.{part}_proj.weight"] for part in ("gate", "up")]) for i in range(3)]
        made[f"{name}.gate_up_proj"] = torch.stack(ups)
        made[f"{name}.down_proj"] = torch.stack([state[f"{name}.{i}.down_proj.weight"] for i in range(3)])
    return made


def test_stacks_of_other_networks_are_out_by_in() -> None:
    trained(qwen(), target_parameters=[GATE_UP, DOWN])
    save_file(stacked("base"), "stacks.safetensors")
    cs.apply(cs.lora_merge("stacks.safetensors", ["adapter"]), "out.safetensors")
    made, wanted = load_file("out.safetensors"), stacked("merged")
    for key, value in wanted.items():
        torch.testing.assert_close(made[key], value, rtol=1e-5, atol=1e-6)


def test_square_matrices_without_a_layout_are_an_error() -> None:
    trained(gpt_oss(64), target_parameters=[DOWN])
    state = tensors("base")
    turned = {key: value.mT.contiguous() if key.endswith(GATE_UP) else value for key, value in state.items()}
    save_file(turned, "turned.safetensors")
    with pytest.raises(FormatError, match=r"3 of 64 x 64\), and nothing shows whether they are") as error:
        cs.lora_merge("turned.safetensors", ["adapter"])
    assert "merge_and_unload" in error.value.hint


def test_stacks_of_another_number_of_experts_are_an_error() -> None:
    trained(gpt_oss(), target_parameters=[GATE_UP, DOWN])
    state = {key: value[:2].clone() if ".experts." in key else value for key, value in tensors("base").items()}
    save_file(state, "two.safetensors")
    with pytest.raises(PlanError, match=r"gate_up_proj of two.safetensors: the weight is \(2, 64, 192\)"):
        cs.lora_merge("two.safetensors", ["adapter"])
    rows = {row.id: row for row in cs.check("adapter", base="two.safetensors").rows}
    assert "changes a weight of shape (3, 192, 64), but the base's weight has shape (2, 64, 192)" in (
        rows["adapter-shapes"].found[0].what
    )


def test_a_stack_is_not_changed_by_experts_and_as_a_whole() -> None:
    """A plan file could say so; the rows of a block would be counted in two ways."""
    by_experts, saved = LoraTerm("experts 3"), LoraTerm("saved")
    shape, factors = (3, 4, 5), ((6, 5), (4, 6))
    assert Lora((by_experts,)).fits(shape, [shape, *factors])
    assert Lora((by_experts, by_experts)).fits(shape, [shape, *factors, *factors])
    assert not Lora((by_experts, saved)).fits(shape, [shape, *factors, shape])
    for wrong in [((6, 4), (5, 6)), ((6, 5), (4, 3)), ((5, 5), (4, 5)), ((6, 5, 1), (4, 6))]:
        assert not Lora((by_experts,)).fits(shape, [shape, *wrong])
