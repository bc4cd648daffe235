"""Layers that lack a tensor, and weights of another class than config.json says: said; never of a model that is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.folder import ModelFolder
from ckptsurgeon.api.model_folder.folder_checks import weights_notes
from ckptsurgeon.api.model_folder.layers.checks import layer_notes
from ckptsurgeon.api.model_folder.weights.family_checks import family_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor
from ckptsurgeon.planning.target import Companion

LLAMA = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def keys(layers: int = 5, names: tuple[str, ...] = LLAMA, stack: str = "model.layers") -> list[str]:
    return [f"{stack}.{number}.{name}.weight" for number in range(layers) for name in names]


def model(found: list[str], **fields: Any) -> str:
    Path("m").mkdir()
    save_file({key: torch.ones((4,) if key.endswith("bias") else (4, 4)) for key in found}, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps(fields))
    return "m"


def described(found: list[str]) -> list[DescribedTensor]:
    return [DescribedTensor(key, "float32", (4, 4)) for key in found]


LACKS = "model.layers.2 lacks mlp.up_proj.weight, which the other layers have: transformers initialises what is missing"
MIXED = "config.json says llama (model_type), but no llama model has h.0.attn.c_attn.weight: the weights are not loaded"
VERBS = {
    "convert": cs.convert, "inspect": cs.inspect, "average": lambda path: cs.average([path, path]),
    "merge": lambda path: cs.merge([path, path], method="linear", weights=[1, 1]),
    "transplant": lambda path: cs.transplant(path, path),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("found", "fields", "note"),
    [
        ([key for key in keys() if key != "model.layers.2.mlp.up_proj.weight"], {"num_hidden_layers": 5}, LACKS),
        (keys(1, ("attn.c_attn",), "h"), {"model_type": "llama"}, MIXED),
        ([*keys(1), "model.layers.0.self_attn.q_proj.bias"], {"attention_bias": False},
         "config.json says attention_bias: false, but there is model.layers.0.self_attn.q_proj.bias: "
         "transformers ignores this tensor"),
    ],
)  # fmt: skip
def test_every_verb_says_it(verb: str, found: list[str], fields: dict[str, Any], note: str) -> None:
    notes = [one.removeprefix("m: ") for one in VERBS[verb](model(found, **fields)).notes]
    assert notes.count(note) == 1


@pytest.mark.parametrize(
    ("kind", "dtype", "said"),
    [("llama", "float32", True), ("stablelm", "float32", False), ("llama", "uint8", False)],
)
def test_a_layer_of_other_shapes_is_another_models(kind: str, dtype: str, said: bool) -> None:
    tensors = [DescribedTensor(one.key, dtype, (4, 2) if ".2.mlp" in one.key else (4, 4)) for one in described(keys())]
    notes = list(layer_notes(tensors, {"model_type": kind, "num_hidden_layers": 5}))
    wanted = (
        "model.layers.0.mlp.up_proj.weight is (4, 4), but model.layers.2.mlp.up_proj.weight is (4, 2): layers of llama"
    )
    assert [wanted in note for note in notes] == [True] * said


@pytest.mark.parametrize(
    ("lost", "fields", "said"),
    [
        (["2.mlp.up_proj"], {}, "model.layers.2 lacks mlp.up_proj.weight,"),
        (["2.mlp.up_proj", "2.mlp.down_proj"], {}, "model.layers.2 lacks mlp.up_proj.weight and mlp.down_proj.weight,"),
        (["0.mlp.up_proj"], {"model_type": "llama"}, "model.layers.0 lacks mlp.up_proj.weight,"),
        (["4.mlp.up_proj", "3.mlp.up_proj"], {"model_type": "llama"}, "missing; 1 other layer lacks tensors, too"),
        (["0.mlp.up_proj"], {}, ""),
        (["4.mlp.up_proj"], {}, ""),
        (["1.mlp.up_proj", "3.mlp.up_proj"], {}, ""),
        (["2.mlp.up_proj"], {"block_configs": []}, ""),
    ],
)
def test_a_layer_alone_lacks_what_all_others_have(lost: list[str], fields: dict[str, Any], said: str) -> None:
    left = [key for key in keys() if key.removeprefix("model.layers.").removesuffix(".weight") not in lost]
    notes = [note for note in layer_notes(described(left), {"num_hidden_layers": 5, **fields}) if "lacks" in note]
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


@pytest.mark.parametrize(
    ("other", "mine"),
    [
        ("mlp.up_proj.qweight", "mlp.up_proj.weight"),
        ("mlp.up_proj.weight_scale", ""),
        ("self_attn.k_scale", ""),
        ("mlp.up_proj.weight.absmax", ""),
        ("mamba.in_proj.weight", "self_attn.in_proj.weight"),
    ],
)
def test_a_layer_of_another_kind_or_encoding_lacks_nothing(other: str, mine: str) -> None:
    found = keys(5, ("self_attn.q_proj", "mlp.up_proj") if not mine else ("norm",))
    found += [f"model.layers.{n}.{mine if n == 2 else other}" for n in range(5) if n != 2 or mine]
    for kind in ("llama", "x"):
        assert not list(layer_notes(described(found), {"num_hidden_layers": 5, "model_type": kind}))


def test_three_layers_of_which_each_second_is_another_are_sound() -> None:
    found = [*keys(3), "model.layers.0.crossattention.weight", "model.layers.2.crossattention.weight"]
    assert not list(layer_notes(described(found), {"num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("found", "fields", "said"),
    [
        (keys(1, ("attention.self.query",), "bert.encoder.layer"), {"model_type": "llama"}, "no llama model has bert.encoder"),
        (keys(1), {"model_type": "bert"}, "no bert model has model.layers.0.self_attn.o_proj.weight: the weights are not"),
        (keys(1, (*LLAMA, "self_attn.q_norm")), {"model_type": "llama"}, "no llama model has model.layers.0.self_attn.q_norm"),
        (keys(1), {"model_type": "qwen3"}, "the layers have no self_attn.q_norm: transformers initialises it"),
        (keys(1), {"model_type": "qwen2"}, "the layers have no self_attn.q_proj.bias"),
        (keys(1), {"model_type": "x", "attention_bias": True}, "says attention_bias: true, but there is no model.layers.0"),
        ([*keys(1), "model.layers.0.mlp.up_proj.bias"], {"mlp_bias": False}, "says mlp_bias: false, but there is"),
        ([*keys(1), "model.layers.0.self_attn.q_proj.bias"], {"model_type": "llama"}, "does not set attention_bias, but"),
        ([*keys(1), "model.layers.0.self_attn.q_proj.bias"], {"model_type": "qwen2"}, ""),
        ([*keys(1), "model.layers.0.self_attn.q_proj.bias"], {"attention_bias": True}, ""),
        (keys(1, ("attn.c_attn",), "h"), {"model_type": "llama", "auto_map": {"AutoModel": "x.py"}}, ""),
        (keys(1, ("attn.c_attn",), "h"), {"model_type": "llama", "vision_config": {}}, ""),
        (keys(1, ("attn.c_attn",), "h"), {"model_type": "llava_llama"}, ""),
        (["lm_head.weight", "model.layers.0.w"], {"model_type": "gpt2"}, ""),
        (["score.weight"], {"architectures": ["LlamaForCausalLM"]}, "which has no score.weight: transformers ignores this tensor"),
        (["score.weight"], {"architectures": ["LlamaForSequenceClassification"]}, ""),
        (["layers.0.router.classifier.weight"], {"architectures": ["LongcatFlashForCausalLM"]}, ""),
        (keys(1), {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "there is no classifier"),
        (["h.0.w"], {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, ""),
    ],
)  # fmt: skip
def test_tensors_of_another_class_are_said(found: list[str], fields: dict[str, Any], said: str) -> None:
    notes = list(family_notes(described(found), fields))
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


def test_codes_have_biases_that_nobody_asked_for() -> None:
    found = ["model.layers.0.self_attn.q_proj.qweight", "model.layers.0.self_attn.q_proj.bias"]
    assert not list(family_notes(described(found), {"model_type": "llama", "attention_bias": False}))


def test_a_classifier_that_an_adapter_brings_to_a_language_model_is_said() -> None:
    path = model(keys(1), model_type="llama", architectures=["LlamaForCausalLM"])
    Path("ad").mkdir()
    said = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 2, "modules_to_save": ["score"]}
    Path("ad/adapter_config.json").write_text(json.dumps(said))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    factors = {f"{name}_A.weight": torch.ones(2, 4), f"{name}_B.weight": torch.ones(4, 2)}
    save_file({**factors, "base_model.model.score.weight": torch.ones(3, 4)}, "ad/adapter_model.safetensors")
    (note,) = [one for one in cs.lora_merge(path, "ad").notes if "(architectures)" in one]
    assert note.startswith("config.json says LlamaForCausalLM (architectures), which has no score.weight")


def test_an_adapter_beside_a_configuration_is_of_no_class() -> None:
    path = model(keys(1, ("attn.c_attn",), "h"), model_type="llama")
    assert any("not loaded" in note for note in cs.inspect(path).notes)
    Path("m/adapter_config.json").write_text("{}")
    assert any("not loaded" in note for note in cs.inspect(path).notes)  # left over beside a whole model
    Path("m/model.safetensors").rename("m/adapter_model.safetensors")
    assert not any("not loaded" in note for note in cs.inspect(path).notes)


@pytest.mark.parametrize(
    ("found", "fields"),
    [
        ([*keys(2), "subsampling.layers.0.weight", "subsampling.layers.3.weight"], {"num_hidden_layers": 2}),
        (keys(2, ("encoder_attn.q_proj",), "model.decoder.layers"), {"encoder_layers": 1, "decoder_layers": 2}),
        (keys(2, ("conv",), "encoder.blocks"), {"num_hidden_layers": 64, "model_type": "efficientnet"}),
    ],
)
def test_lists_that_are_no_layers_are_not_counted(found: list[str], fields: dict[str, Any]) -> None:
    assert not list(layer_notes(described(found), fields))


KINDS = (
    "albert", "bart", "bert", "bloom", "cohere", "deberta-v2", "deepseek_v3", "deit", "distilbert", "falcon", "gemma",
    "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gptj", "granite", "jamba", "llama", "llama4_text", "mistral", "mixtral",
    "olmo2", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "roberta", "starcoder2", "swin",
    "t5", "vit", "wav2vec2", "whisper", "zamba2", "modernbert", "parakeet_encoder",
)  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_said_of_models_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("another transformers")
    config = transformers.CONFIG_MAPPING[kind]()
    for name, size in {"num_experts": 2, "n_routed_experts": 8, "num_local_experts": 2}.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    with torch.device("meta"):
        found = transformers.AutoModel.from_config(config).state_dict()
    tensors = [DescribedTensor(key, "float32", tuple(tensor.shape)) for key, tensor in found.items()]
    for fields in (config.to_dict(), config.to_diff_dict()):
        assert [*layer_notes(tensors, fields), *family_notes(tensors, fields)] == []


def test_the_image_of_mllama_has_a_row_beyond_the_vocabulary() -> None:
    for kind, said in (("mllama", False), ("llama", True)):
        config = {"model_type": kind, "vocab_size": 4, "image_token_index": 4}
        folder = ModelFolder("", (Companion("config.json", text=json.dumps(config)),))
        assert any("image_token_index" in note for note in weights_notes([], folder, folder)) is said


MOE = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "self_attn.sinks", "mlp.router.weight",
       "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias", "input_layernorm.weight")  # fmt: skip
DENSE = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight")


@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v3", "olmoe"])
@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["0.self_attn.o_proj.weight"], "model.layers.0 lacks self_attn.o_proj.weight, which the other layers have"),
        (["3.self_attn.o_proj.weight"], "model.layers.3 lacks self_attn.o_proj.weight, which the other layers have"),
        (
            ["1.self_attn.o_proj.weight", "2.self_attn.o_proj.weight"],
            "initialises what is missing; 1 other layer lacks tensors, too",
        ),
        (["2.self_attn.sinks"], "model.layers.2 lacks self_attn.sinks"),
        (["3.mlp.experts.gate_up_proj_bias"], "model.layers.3 lacks mlp.experts.gate_up_proj_bias"),
        (["2.mlp.experts.gate_up_proj"], "model.layers.2 lacks mlp.experts.gate_up_proj,"),
        (["0.input_layernorm.weight"], "model.layers.0 lacks input_layernorm.weight"),
        ([], ""),
    ],
)
def test_a_module_lacks_what_it_has_in_layers_of_its_kind(kind: str, lost: list[str], said: str) -> None:
    found = [f"{n}.{rest}" for n in range(4) for rest in (DENSE if n == 0 else MOE)]
    if "0.self_attn.sinks" not in found:
        found.append("0.self_attn.sinks")
    left = [f"model.layers.{key}" for key in found if key not in lost]
    notes = list(layer_notes(described(left), {"model_type": kind, "num_hidden_layers": 4, "first_k_dense_replace": 1}))
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["0.self_attn.o_proj"], "model.layers.0 lacks self_attn.o_proj.weight"),
        (["4.mlp.down_proj"], "model.layers.4 lacks mlp.down_proj.weight"),
        (["3.self_attn.k_proj", "4.self_attn.k_proj"], ""),  # shared with the layers before
        (["4.self_attn.k_proj", "4.self_attn.v_proj"], ""),
    ],
)
def test_layers_of_unknown_types_lack_an_output(lost: list[str], said: str) -> None:
    names = [f"self_attn.{one}_proj" for one in "qkvo"] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    left = [f"model.layers.{n}.{name}.weight" for n in range(5) for name in names if f"{n}.{name}" not in lost]
    notes = list(layer_notes(described(left), {"model_type": "x", "num_hidden_layers": 5}))
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)


@pytest.mark.parametrize(
    ("dtype", "fields", "said"),
    [
        ("float16", {}, True), ("float32", {}, True), ("bfloat16", {}, False), ("int8", {}, False),
        ("float16", {"quantization_config": {"quant_method": "awq"}}, False),
    ],
)  # fmt: skip
def test_layers_of_two_dtypes_are_said(dtype: str, fields: dict[str, Any], said: bool) -> None:
    tensors = [DescribedTensor(key, dtype if ".2." in key else "bfloat16", (4, 4)) for key in keys()]
    if dtype == "int8":
        tensors.append(DescribedTensor("model.layers.3.mlp.up_proj.scales", "float16", (4, 4)))
    every = layer_notes(tensors, {"model_type": "llama", "num_hidden_layers": 5, **fields})
    notes = [note for note in every if "another copy" in note]
    wanted = "model.layers.0.self_attn.q_proj.weight is bfloat16, but model.layers.2.self_attn.q_proj.weight is "
    assert [f"{wanted}{dtype}:" in note for note in notes] == [True] * said


def test_an_image_encoder_of_another_half_dtype_is_sound() -> None:
    tensors = [DescribedTensor(key, "bfloat16", (4, 4)) for key in keys()]
    tensors += [DescribedTensor(key, "float16", (4, 4)) for key in keys(stack="vision.layers")]
    assert not list(layer_notes(tensors, {"model_type": "x"}))
