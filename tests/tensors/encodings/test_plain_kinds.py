"""Kinds of modules that are plain in every layer, though the settings of quantisation do not leave them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from .test_agreement import VERBS
from .test_missing_parts import IN, OUT, folder_of

WHERE = "model.layers.{}.{}.weight"
METHODS = ["gptq", "awq", "fp8-block", "bnb-nf4", "int4-packed"]
SAID = "{} not quantised in any layer, although its quantization_config does not exclude {}: "


def said(found: Any) -> list[str]:
    return [note.partition(": ")[2] for note in found.notes if "in any layer" in note]


def beside(name: str, path: Path, *modules: str, **settings: Any) -> Path:
    """A model of three layers with codes, beside which modules are plain in every layer; settings of quantisation."""
    plain = {WHERE.format(layer, one): torch.randn(OUT, IN).bfloat16() for one in modules for layer in range(3)}
    folder = folder_of(name, path, lambda state: state.update(plain))
    config = json.loads((folder / "config.json").read_text())
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}
    config["quantization_config"] |= ({"config_groups": groups} if name == "int4-packed" else {}) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", METHODS)
def test_attention_that_is_plain_in_every_layer_is_said(name: str, verb: str, tmp_path: Path) -> None:
    folder = beside(name, tmp_path, "self_attn.q_proj")
    names = ", ".join(WHERE.format(layer, "self_attn.q_proj") for layer in range(3))
    assert SAID.format("3 weights are", "them") + names in said(VERBS[verb](folder))


@pytest.mark.each_value
@pytest.mark.parametrize("entries", [
    ["self_attn"],
    ["self_attn.q_proj"],
    [f"model.layers.{layer}.self_attn.q_proj" for layer in range(3)],
    [f"model.layers.{layer}.self_attn.qkv_proj" for layer in range(3)],
    [f"language_model.model.layers.{layer}.self_attn" for layer in range(3)],
])  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
def test_what_the_settings_leave_out_is_not(name: str, entries: list[str], tmp_path: Path) -> None:
    field = "ignore" if name == "int4-packed" else "modules_to_not_convert"
    assert not said(cs.inspect(beside(name, tmp_path, "self_attn.q_proj", **{field: entries})))


@pytest.mark.parametrize("entry", ["re:.*self_attn.*", "re:.*q_proj", "re:model.layers.\\d+.self_attn.[qkv]_proj"])
def test_expressions_that_leave_modules_out_are_heeded(entry: str, tmp_path: Path) -> None:
    assert not said(cs.inspect(beside("int4-packed", tmp_path, "self_attn.q_proj", ignore=["lm_head", entry])))


@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("number", [3, 1])
def test_kinds_that_an_expression_may_leave_out_are_said(number: int, verb: str, tmp_path: Path) -> None:
    """It has more groups than are evaluated."""
    ignore = ["lm_head", "re:(a|b)(c|d)(e|f)(.*)q_proj", *(WHERE.format(n, "self_attn.q_proj")[:-7] for n in range(3))]
    folder = beside("int4-packed", tmp_path, "self_attn.q_proj", ignore=ignore[: 5 - number])
    (note,) = said(VERBS[verb](folder))
    are, them = ("3 weights are", "them") if number == 3 else ("1 weight is", "it")
    may = f"some expressions of its quantization_config, which may exclude {them}, are not evaluated: "
    assert f"{are} not quantised in any layer; {may}" in note


@pytest.mark.each_value
@pytest.mark.parametrize("module", ["mlp.gate", "mlp.router", "input_layernorm", "self_attn.indexer.weights_proj"])
@pytest.mark.parametrize("name", METHODS)
def test_other_modules_than_linear_layers_are_not_judged(name: str, module: str, tmp_path: Path) -> None:
    assert not said(cs.inspect(beside(name, tmp_path, module)))


def test_a_tower_without_codes_is_not_judged(tmp_path: Path) -> None:
    plain = {f"visual.blocks.{layer}.mlp.up_proj.weight": torch.randn(OUT, IN) for layer in range(3)}
    assert not said(cs.inspect(folder_of("fp8-block", tmp_path, lambda state: state.update(plain))))


def test_targets_other_than_all_linear_layers_are_not_judged(tmp_path: Path) -> None:
    folder = beside("int4-packed", tmp_path, "self_attn.q_proj")
    text = (folder / "config.json").read_text()
    assert '["Linear"]' in text
    (folder / "config.json").write_text(text.replace('["Linear"]', '["re:.*up_proj"]'))
    assert not said(cs.inspect(folder))


def test_a_single_plain_weight_is_said_in_the_singular(tmp_path: Path) -> None:
    key = WHERE.format(1, "self_attn.o_proj")
    folder = folder_of("fp8-block", tmp_path, lambda state: state.update({key: torch.randn(OUT, IN)}))
    assert said(cs.inspect(folder)) == [SAID.format("1 weight is", "it") + key]


@pytest.mark.parametrize(("method", "is_said"), [("mxfp4", True), ("fp8", False)])
def test_plain_experts_beside_codes_of_others_are_said(method: str, is_said: bool, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state: dict[str, torch.Tensor] = {}
    for layer in range(2):
        stem = f"model.layers.{layer}.mlp.experts"
        state[f"{stem}.gate_up_proj_blocks"] = torch.zeros(2, 64, 2, 16, dtype=torch.uint8)
        state[f"{stem}.gate_up_proj_scales"] = torch.zeros(2, 64, 2, dtype=torch.uint8)
        state[f"{stem}.down_proj"] = torch.zeros(2, 32, 64, dtype=torch.bfloat16)
        state[f"model.layers.{layer}.self_attn.q_proj.weight"] = torch.zeros(64, 64, dtype=torch.bfloat16)
    save_file(state, tmp_path / "model.safetensors")
    left_out = [] if is_said else ["mlp.experts", "self_attn"]
    settings = {"quant_method": method, "modules_to_not_convert": left_out}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "quantization_config": settings}))
    names = ", ".join(f"model.layers.{layer}.mlp.experts.down_proj" for layer in range(2))
    assert said(cs.inspect(tmp_path)) == ([SAID.format("2 weights are", "them") + names] if is_said else [])


@pytest.mark.parametrize(("name", "is_said"), [("bnb-nf4", False), ("fp8-block", True)])
def test_single_experts_are_not_quantised_by_bitsandbytes(name: str, is_said: bool, tmp_path: Path) -> None:
    """transformers 5 has all experts of a layer in one tensor, which bitsandbytes keeps; saving splits it again."""
    modules = [f"mlp.experts.{expert}.{one}_proj" for expert in range(2) for one in ("gate", "up")]
    assert bool(said(cs.inspect(beside(name, tmp_path, *modules)))) == is_said


def test_an_expression_that_includes_a_module_comes_before_later_ones(tmp_path: Path) -> None:
    included = {r"+:.*\.1\..*q_proj": {"bits": 4}, "-:.*q_proj": {}}
    folder = beside("gptq", tmp_path, "self_attn.q_proj", dynamic=included)
    assert said(cs.inspect(folder)) == [SAID.format("1 weight is", "it") + WHERE.format(1, "self_attn.q_proj")]
    folder = beside("gptq", tmp_path, "self_attn.q_proj", dynamic=dict(reversed(included.items())))
    assert said(cs.inspect(folder)) == []
