"""Heads and inner widths of config.json that no layer of the weights has: said; never of a model that is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.codes.logical_tensors import logical_tensors
from ckptsurgeon.api.model_folder.weights.row_checks import output_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor, shape_notes

BASE = {
    "model_type": "llama", "vocab_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def layer(number: int, heads: int = 8, keys: int = 4, inner: int = 12) -> dict[str, torch.Tensor]:
    shapes = {"self_attn.q_proj": (heads, 8), "self_attn.k_proj": (keys, 8), "self_attn.v_proj": (keys, 8),
              "self_attn.o_proj": (8, heads), "mlp.up_proj": (inner, 8), "mlp.down_proj": (8, inner)}  # fmt: skip
    return {f"model.layers.{number}.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}


def model(*layers: dict[str, torch.Tensor], **more: Any) -> str:
    Path("m").mkdir(exist_ok=True)
    state = {"model.embed_tokens.weight": torch.ones(6, 8)}
    for tensors in layers or (layer(0), layer(1)):
        state |= tensors
    save_file(state, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps({key: one for key, one in {**BASE, **more}.items() if one != ""}))
    return "m"


def said(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if "cannot load this model" in note]


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"intermediate_size": 24}, "says 24 (intermediate_size), but model.layers.0.mlp.down_proj.weight has 12 columns"),
        ({"head_dim": 4}, "says 4 heads of 4 (num_attention_heads, head_dim), but model.layers.0.self_attn.o_proj.weight "
         "has 8 columns"),
        ({"num_attention_heads": 2, "head_dim": 2}, "says 2 heads of 2"),
        ({"num_key_value_heads": 4}, "says 4 heads of keys and values (num_key_value_heads), but model.layers.0.self_attn"
         ".k_proj.weight has 4 rows"),
        ({"num_key_value_heads": None}, "says 4 heads of keys and values"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "verb", [cs.convert, lambda path: cs.average([path, path]), lambda path: cs.transplant(path, path)]
)
def test_sizes_that_no_layer_has_are_said(verb: Any, fields: dict[str, Any], note: str) -> None:
    (found,) = said(verb(model(**fields)))
    assert f"config.json {note}" in found


def test_the_inner_width_of_bert_and_gpt_neox_is_held_against_theirs() -> None:
    for name, shape, unit in (("encoder.layer.0.intermediate.dense", (12, 8), "rows"),
                              ("gpt_neox.layers.0.mlp.dense_4h_to_h", (8, 12), "columns")):  # fmt: skip
        assert not said(cs.convert(model({f"{name}.weight": torch.ones(shape)}, num_hidden_layers=1)))
        path = model({f"{name}.weight": torch.ones(shape)}, num_hidden_layers=1, intermediate_size=13)
        assert f"{name}.weight has 12 {unit}" in said(cs.convert(path))[0]


CODES = {
    "AWQ": lambda rows, columns: {"qweight": (columns, rows // 8), "qzeros": (1, rows // 8), "scales": (1, rows)},
    "GPTQ": lambda rows, columns: {"qweight": (columns // 8, rows), "qzeros": (1, rows // 8), "scales": (1, rows)},
    "MLX": lambda rows, columns: {"weight": (rows, columns // 8), "scales": (rows, columns // 32),
                                  "biases": (rows, columns // 32)},
    "packed": lambda rows, columns: {"weight_packed": (rows, columns // 8), "weight_scale": (rows, 1)},
    "nvfp4": lambda rows, columns: {"weight_packed": (rows, columns // 2), "weight_scale": (rows, columns // 16),
                                    "weight_global_scale": (1,)},
    "bitsandbytes": lambda rows, columns: {"weight": (rows * columns // 2, 1), "weight.absmax": (rows * columns // 64,),
                                           "weight.quant_map": (16,), "weight.quant_state.bitsandbytes__nf4": (70,)},
}  # fmt: skip
"""Shapes of the parts of a quantised matrix of 4 bits, by method."""
DTYPES_OF_PARTS = {
    "qweight": "int32", "qzeros": "int32", "scales": "float16", "biases": "float16", "weight_packed": "int32",
    "weight_scale": "float16", "weight_global_scale": "float32", "weight.absmax": "float32",
    "weight.quant_map": "float32", "weight.quant_state.bitsandbytes__nf4": "uint8",
}  # fmt: skip
OTHER_DTYPES = {
    "MLX": {"weight": "uint32"}, "bitsandbytes": {"weight": "uint8"},
    "nvfp4": {"weight_packed": "uint8", "weight_scale": "float8_e4m3fn"},
}  # fmt: skip
SETTINGS = {
    "MLX": {"group_size": 32, "bits": 4}, "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "packed": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4}}}},
    "nvfp4": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
}  # fmt: skip
WIDE = {
    "model_type": "llama", "vocab_size": 6, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def quantised(method: str, **fields: Any) -> tuple[list[DescribedTensor], dict[str, Any]]:
    """A quantised layer of width 64, and its configuration."""
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
              "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64),
              "mlp.down_proj": (64, 96)}  # fmt: skip
    dtypes = {**DTYPES_OF_PARTS, **OTHER_DTYPES.get(method, {})}
    tensors = [DescribedTensor("model.embed_tokens.weight", "float16", (6, 64))]
    for name, (rows, columns) in shapes.items():
        for end, shape in CODES[method](rows, columns).items():
            tensors.append(DescribedTensor(f"model.layers.0.{name}.{end}", dtypes[end], shape))
    return tensors, {**WIDE, "quantization_config": SETTINGS.get(method, {}), **fields}


@pytest.mark.parametrize("method", CODES)
@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({}, ""),
        ({"intermediate_size": 128}, "config.json says 128 (intermediate_size), but model.layers.0.mlp.down_proj.weight has 96 "
         "columns"),
        ({"num_key_value_heads": 4}, "config.json says 4 heads of keys and values (num_key_value_heads), but "
         "model.layers.0.self_attn.k_proj.weight has 32 rows"),
        ({"num_attention_heads": 8, "head_dim": 16}, "config.json says 8 heads of 16 (num_attention_heads, head_dim), but "
         "model.layers.0.self_attn.o_proj.weight has 64 columns"),
    ],
)  # fmt: skip
def test_sizes_of_quantised_layers_are_held_against_the_configuration(
    method: str, fields: dict[str, Any], note: str
) -> None:
    tensors, config = quantised(method, **fields)
    notes = list(shape_notes(logical_tensors(tensors, config), config))
    assert notes == ([f"{note}: config.json or the weights are from another model"] if note else [])


def test_output_layers_of_codes_may_be_filled_up() -> None:
    fields = {"vocab_size": 70, "architectures": ["LlamaForCausalLM"]}
    embedding = DescribedTensor("model.embed_tokens.weight", "float16", (70, 64))
    for rows, is_said in ((70, False), (96, False), (128, False), (77, True), (64, True)):
        head = DescribedTensor("lm_head.weight", "float16", (rows, 64), is_quantised=True)
        assert bool(list(output_notes([embedding, head], fields))) is is_said


def test_bits_that_the_settings_have_wrong_do_not_make_the_sizes_wrong() -> None:
    tensors, config = quantised("packed")
    config["quantization_config"] = {"config_groups": {"a": {"weights": {"num_bits": 8}}}}
    assert not list(shape_notes(logical_tensors(tensors, config), config))


@pytest.mark.parametrize(
    ("experts", "has"),
    [
        ({"mlp.experts.0.down_proj.weight": (8, 4)}, "0.down_proj.weight has 4 columns"),
        ({"block_sparse_moe.experts.0.w2.weight": (8, 4)}, "0.w2.weight has 4 columns"),
        ({"mlp.experts.down_proj": (3, 8, 4)}, "experts.down_proj is (3, 8, 4)"),
        ({"mlp.experts.down_proj": (3, 4, 8)}, "experts.down_proj is (3, 4, 8)"),
    ],
)  # fmt: skip
def test_the_inner_width_of_experts_is_held_against_theirs(experts: dict[str, tuple[int, ...]], has: str) -> None:
    tensors = [DescribedTensor(f"model.layers.0.{name}", "float32", shape) for name, shape in experts.items()]
    for field in ("moe_intermediate_size", "intermediate_size"):
        assert not list(shape_notes(tensors, {"hidden_size": 8, field: 4}))
        (note,) = shape_notes(tensors, {"hidden_size": 8, field: 16})
        assert note.startswith(f"config.json says 16 ({field}), but model.layers.0.")
        assert note.endswith(f"{has}: transformers cannot load this model")


@pytest.mark.parametrize(
    ("layers", "fields"),
    [
        ((), {}),
        ((), {"num_key_value_heads": ""}),
        ((), {"head_dim": 2}),
        ((layer(0), layer(1, inner=24)), {}),
        ((layer(0), layer(1, 16, 8)), {}),
        ((), {"intermediate_size": [24, 24]}),
        ((), {"intermediate_size": 24, "moe_intermediate_size": 12}),
        ((), {"intermediate_size": 24, "block_configs": []}),
        ((), {"intermediate_size": 24, "text_config": {}}),
        ((layer(0, 64, 64), layer(1, 64, 64)), {"num_attention_heads": 1, "num_key_value_heads": 1}),
    ],
)
def test_nothing_is_said_of_layers_that_may_be_so(layers: tuple[Any, ...], fields: dict[str, Any]) -> None:
    assert not said(cs.convert(model(*layers, **fields)))


def test_nothing_is_said_of_codes_and_of_what_lacks_keys_of_its_own() -> None:
    tensors = layer(0, 2, 2) | layer(1, 2, 2)
    compressed = {key: one for key, one in tensors.items() if "k_proj" not in key}
    assert not said(cs.convert(model(compressed)))
    packed = {key: one.to(torch.uint8) for key, one in tensors.items()}
    assert not said(cs.convert(model(packed, intermediate_size=24)))


TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "phi3", "glm4_moe",
         "deepseek_v3", "gpt_neox", "falcon", "bert", "olmo2", "qwen3_next", "glm4v_vision", "gpt_oss")  # fmt: skip

SAID = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "bert", "olmo2", "gpt_neox")
"""Those in which one number gives the width of all layers."""


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("whole", [False, True])
def test_nothing_is_said_of_models_of_transformers(kind: str, whole: bool) -> None:
    transformers = pytest.importorskip("transformers")
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("another transformers")
    sizes = {"num_hidden_layers": 1, "num_experts": 2, "n_routed_experts": 8, "num_local_experts": 4}
    config = transformers.CONFIG_MAPPING[kind]()
    for name, size in sizes.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    with torch.device("meta"):
        found = transformers.AutoModel.from_config(config).state_dict()
    fields = config.to_dict() if whole else config.to_diff_dict()
    tensors = [DescribedTensor(key, "float32", tuple(tensor.shape)) for key, tensor in found.items()]
    assert list(shape_notes(tensors, fields)) == []
    assert kind not in SAID or len(list(shape_notes(tensors, {**fields, "intermediate_size": 7}))) == 1
