"""Overrides of nested configurations: only the fields that are named change, whatever class the part is of."""

from __future__ import annotations

import json

import pytest

import ckptsurgeon as cs

from ...helpers.models_of_parts import OF_TEXT, PARTS, SMALL
from ...helpers.transformers_models import CLIP, section, write_config

transformers = pytest.importorskip("transformers", minversion="5")


@pytest.mark.costly
@pytest.mark.parametrize("architecture", PARTS)
def test_a_field_of_a_part_changes_alone(architecture: str) -> None:
    fields, part = PARTS[architecture], "decoder" if "decoder" in PARTS[architecture] else "text_config"
    write_config("config.json", fields, architecture)
    before = cs.load_target("config.json")
    after = cs.load_target(section(f'transformers: ".", {part}: {{vocab_size: 64}}'))
    other = [key for key, info in after.tensors.items() if info.shape != before.tensors[key].shape]
    assert after.tensors.keys() == before.tensors.keys()
    assert 0 < len(other) <= 4, other
    assert {after.tensors[key].shape[0] for key in other} == {64}
    written = json.loads(next(one.text for one in after.companions if one.name == "config.json"))
    assert written[part] == {**fields[part], "vocab_size": 64}


@pytest.mark.long
def test_a_part_without_fields_keeps_those_with_which_the_whole_begins() -> None:
    write_config("config.json", {"model_type": "llava", "text_config": OF_TEXT}, "LlavaForConditionalGeneration")
    before = cs.load_target("config.json")
    after = cs.load_target(section('transformers: ".", vision_config: {num_hidden_layers: 2}'))
    assert len(after.tensors) < len(before.tensors)
    assert all(info.shape == before.tensors[key].shape for key, info in after.tensors.items())


def test_a_part_of_another_type_begins_without_fields() -> None:
    write_config("config.json", PARTS["LlavaForConditionalGeneration"], "LlavaForConditionalGeneration")
    part = {**SMALL, "model_type": "qwen2", "hidden_size": 32}
    spec = cs.load_target(section(f'transformers: ".", text_config: {json.dumps(part)}'))
    assert spec.tensors["model.language_model.layers.0.self_attn.q_proj.bias"].shape == (32,)
    written = json.loads(next(one.text for one in spec.companions if one.name == "config.json"))
    assert written["text_config"] == part


@pytest.mark.parametrize("architecture", PARTS)
def test_a_field_that_a_part_does_not_have_is_an_error(architecture: str) -> None:
    part = "decoder" if "decoder" in PARTS[architecture] else "text_config"
    write_config("config.json", PARTS[architecture], architecture)
    with pytest.raises(cs.ConfigError, match=rf"\({part}\) has no field 'vocab_sizes'.*vocab_size"):
        cs.load_target(section(f'transformers: ".", {part}: {{vocab_sizes: 64}}'))


def test_an_object_that_is_no_configuration_is_replaced() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    write_config("config.json", {**OF_TEXT, "rope_parameters": rope}, "LlamaForCausalLM")
    spec = cs.load_target(section('transformers: ".", rope_parameters: {rope_type: default, rope_theta: 5000.0}'))
    written = json.loads(next(one.text for one in spec.companions if one.name == "config.json"))
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000.0}


def test_nested_parts_of_clip_change_alone() -> None:
    write_config("config.json", CLIP, "CLIPModel")
    before = cs.load_target("config.json")
    after = cs.load_target(section('transformers: ".", text_config: {vocab_size: 64}'))
    other = [key for key, info in after.tensors.items() if info.shape != before.tensors[key].shape]
    assert other == ["text_model.embeddings.token_embedding.weight"]
