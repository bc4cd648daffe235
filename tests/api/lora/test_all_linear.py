"""Adapters of "all-linear" with factors for a few layers, and adapters of a base of another class: all verbs note it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import factors, peft_folder

NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
LINEAR = [f"model.layers.{number}.{name}" for number in range(2) for name in NAMES]
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def base(config: dict[str, Any] | None = None, *more: str) -> None:
    Path("base").mkdir()
    state = {f"{name}.weight": torch.ones(4, 4) for name in (*LINEAR, *more, "lm_head", "model.embed_tokens")}
    state["model.layers.0.mlp.gate.weight"] = torch.ones(2, 4)
    save_file(state, "base/model.safetensors", {"format": "pt"})
    if config:
        Path("base/config.json").write_text(json.dumps(config))


def adapter(*modules: str, **config: Any) -> None:
    pairs = {name: factors(4, 4) for name in modules}
    state = {f"{name}.lora_{side}.weight": pair[at] for name, pair in pairs.items() for at, side in enumerate("AB")}
    peft_folder("a", state, **config)


def merged() -> list[str]:
    return [note.removeprefix("a: ") for note in cs.lora_merge("base", "a").notes]


def test_all_linear_with_factors_of_one_layer_is_said() -> None:
    base()
    adapter(LINEAR[0], target_modules="all-linear")
    assert f"target_modules selects 5 modules without factors: {', '.join(sorted(LINEAR[1:]))}" in merged()
    name = LINEAR[0].rpartition(".")[2]
    few = (
        f"target_modules is all-linear, but only modules named {name} have factors ({LINEAR[0]}): "
        "factors of other modules are probably missing"
    )
    assert f"adapter_config.json: {few}" in cs.inspect("a").notes
    assert any(few in one.what for row in cs.check("a").rows for one in row.found)


@pytest.mark.parametrize(
    ("modules", "more", "config"),
    [
        (LINEAR, (), {}),
        (LINEAR, ("vision.layers.0.self_attn.q_proj",), {}),  # a class of language models has no other part
        (LINEAR, ("model.layers.0.mlp.experts.0.up_proj",), {}),  # in newer versions not linear layers
        ([one for one in LINEAR if "q_proj" in one or "o_proj" in one], (), {"exclude_modules": ["up_proj"]}),
        (LINEAR[:3], (), {"layers_to_transform": [0]}),
    ],
)
def test_all_linear_with_all_factors_gets_no_note(modules: list[str], more: tuple[str, ...], config: Any) -> None:
    base(None, *more)
    adapter(*modules, target_modules="all-linear", **config)
    for notes in (merged(), cs.inspect("a").notes):
        assert not [note for note in notes if "target_modules" in note]


def mapping(name: str, folder: str) -> dict[str, Any]:
    library = f"transformers.models.{folder}.modeling_{folder}"
    return {"auto_mapping": {"base_model_class": name, "parent_library": library}}


def test_a_base_of_another_class_is_said() -> None:
    base(LLAMA)
    adapter(*LINEAR, target_modules=["q_proj", "o_proj", "up_proj"], **mapping("BertModel", "bert"))
    said = "the base of a/adapter_model.safetensors is a BertModel (auto_mapping), not a llama (config.json)"
    assert said in merged()
    found = [one.what for one in cs.check("a", base="base").row("adapter-config").found]
    assert any("is a BertModel (auto_mapping), not a llama (config.json)" in one for one in found)


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        (LLAMA, mapping("LlamaModel", "llama")),
        (LLAMA, mapping("LlamaForSequenceClassification", "llama")),
        (LLAMA, {"auto_mapping": {"base_model_class": "Own", "parent_library": "transformers_modules.own"}}),
        (LLAMA, {"auto_mapping": None}),
        (LLAMA, {"auto_mapping": ["odd"]}),
        (LLAMA, {"auto_mapping": {"base_model_class": "BertModel"}}),
        (
            {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]},
            mapping("XLMRobertaModel", "xlm_roberta"),
        ),
        ({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}, mapping("Gemma3TextModel", "gemma3")),
        (
            {"model_type": "llava", "architectures": ["LlavaModel"], "text_config": {"model_type": "llama"}},
            mapping("LlamaForCausalLM", "llama"),
        ),
        ({"model_type": "bert"}, mapping("LlamaModel", "llama")),
        ({}, mapping("LlamaModel", "llama")),
    ],
)
def test_a_base_of_this_class_gets_no_note(config: dict[str, Any], stated: dict[str, Any]) -> None:
    base(config)
    adapter(*LINEAR, target_modules=["q_proj", "o_proj", "up_proj"], **stated)
    assert not [note for note in merged() if "auto_mapping" in note]
