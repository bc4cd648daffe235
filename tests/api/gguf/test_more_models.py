"""Phi-3, OLMo 2, StarCoder 2 and Command R in llama.cpp's layout, and back to a folder that transformers opens."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.deepseek_models import opened
from .test_layouts import read

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
}  # fmt: skip
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "phi3": ("Phi3", "phi3", {"sliding_window": 64, "original_max_position_embeddings": 128}),
    "phi3-long": ("Phi3", "phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    "olmo2": ("Olmo2", "olmo2", {}),
    "starcoder2": ("Starcoder2", "starcoder2", {}),
    "cohere": ("Cohere", "command-r", {}),
    "cohere-plus": ("Cohere", "command-r", {"use_qk_norm": True, "logit_scale": 0.5}),
}
"""Of each kind: its class in transformers, its architecture in llama.cpp, and more fields."""
COMMON = {
    "block_count": "2", "context_length": "128", "embedding_length": "64", "feed_forward_length": "96",
    "attention.head_count": "4", "attention.head_count_kv": "2", "attention.key_length": "16",
    "attention.value_length": "16", "vocab_size": "96", "rope.freq_base": "10000.0",
}  # fmt: skip
RMS, PLAIN = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
PHI_3 = {RMS: "1e-05", "rope.dimension_count": "16", "rope.scaling.original_context_length": "128"}
COHERE = {PLAIN: "1e-05", "rope.freq_base": "500000.0", "rope.scaling.type": "none"}
ATTENTION = float(f"{math.sqrt(1 + math.log(4) / math.log(32)):.7g}")
WANTED = {
    "phi3": {**PHI_3, "attention.sliding_window": "64"},
    "phi3-long": {
        RMS: "1e-05", "rope.dimension_count": "12", "rope.scaling.original_context_length": "32",
        "attention.sliding_window": "0", "rope.scaling.attn_factor": str(ATTENTION),
    },
    "olmo2": {RMS: "1e-05"},
    "starcoder2": {PLAIN: "1e-05"},
    "cohere": {**COHERE, "logit_scale": "0.0625"},
    "cohere-plus": {**COHERE, "logit_scale": "0.5"},
}  # fmt: skip


def saved(kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a tiny model, which is saved as transformers does in the folder ``model``."""
    transformers = pytest.importorskip("transformers")
    name, _, more = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    network = getattr(transformers, f"{name}ForCausalLM")(config).bfloat16()
    for value in network.state_dict().values():
        value.copy_(torch.randn(value.shape) / 8)
    network.save_pretrained("model")
    return load_file("model/model.safetensors")


def changed(**fields: Any) -> None:
    place = Path("model/config.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **fields}))


@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_way_back_with_the_same_values(kind: str, dtype: str) -> None:
    tensors = saved(kind)
    first, state = opened("model")
    cs.apply(cs.convert("model", layout="gguf", dtype=dtype), "x.gguf")
    assert cs.verify("x.gguf").ok
    plan = cs.convert("x.gguf", layout="transformers", dtype="bfloat16")
    assert any("left out: rope_factors_long" in note for note in plan.notes) == (kind == "phi3-long")
    cs.apply(plan, "back/")
    files = load_file("back/model.safetensors")
    assert set(files) == set(tensors)
    assert all(torch.equal(files[key], value) for key, value in tensors.items())
    shutil.copy("model/config.json", "back/config.json")
    second, found = opened("back")
    assert all(torch.equal(found[key], value) for key, value in state.items())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(first(tokens).logits, second(tokens).logits)


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_entries_are_those_of_gguf_py(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    tensors = saved(kind)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    architecture = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == KINDS[kind][1])
    names = gguf.get_tensor_name_map(architecture, SIZES["num_hidden_layers"])
    want = {names.get_name(key, (".weight", ".bias")) for key in tensors}
    assert None not in want
    more = {"rope_factors_long.weight", "rope_factors_short.weight"} if kind == "phi3-long" else set()
    found = read("x.gguf")
    assert set(found) == want | more
    assert all(value.dtype == torch.float32 for key, value in found.items() if "norm" in key or key.endswith(".bias"))
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
    known = {value for group in groups for value in vars(group).values() if isinstance(value, str)}
    assert {f"{{arch}}.{name}" for name in {**COMMON, **WANTED[kind]}} <= known


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_are_those_of_convert_hf_to_gguf(kind: str) -> None:
    saved(kind)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        said = dict(found.metadata)
    architecture = KINDS[kind][1]
    assert said["general.architecture"] == architecture
    entries = {
        key.removeprefix(f"{architecture}."): value for key, value in said.items() if key.startswith(architecture)
    }
    assert entries == {**COMMON, **WANTED[kind]}


def test_divisors_of_frequencies_are_tensors() -> None:
    saved("phi3-long")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")
    assert found["rope_factors_long.weight"].tolist() == LONG["long_factor"]
    assert found["rope_factors_short.weight"].tolist() == LONG["short_factor"]


def test_norms_that_are_matrices_are_not_rounded() -> None:
    saved("cohere-plus")
    cs.apply(cs.convert("model", layout="gguf", gguf_type="q8_0"), "x.gguf")
    found = read("x.gguf")
    assert found["blk.0.attn_q_norm.weight"].shape == (4, 16)
    assert found["blk.0.attn_q_norm.weight"].dtype == torch.float32
    assert found["blk.0.ffn_up.weight"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("phi3", {"num_attention_heads": 8}, "which do not fit 8 heads of queries and 2 heads of keys"),
        ("phi3", {"num_key_value_heads": 4}, "which do not fit 4 heads of queries and 4 heads of keys"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "with the method yarn, which llama.cpp does not read",
        ),
        ("phi3-long", {"rope_parameters": {**LONG, "long_factor": [1.0]}}, "long_factor as .1.0., not 6 numbers"),
        ("phi3-long", {"rope_parameters": {**LONG, "short_factor": [0.0] * 6}}, "short_factor as .* not 6 numbers"),
        ("phi3-long", {"rope_parameters": {**LONG, "attention_factor": 2.0}}, "attention_factor as 2.0"),
        ("phi3-long", {"rope_parameters": {**LONG, "partial_rotary_factor": 2}}, "partial_rotary_factor as 2"),
        ("olmo2", {"attention_bias": True}, "attention_bias as True"),
        ("olmo2", {"num_key_value_heads": 4}, "num_key_value_heads"),
        ("starcoder2", {"use_bias": False}, "use_bias as False"),
        ("starcoder2", {"hidden_act": "silu"}, "hidden_act as 'silu'"),
        ("starcoder2", {"norm_epsilon": "small"}, "norm_epsilon as 'small', not a number"),
        ("cohere", {"attention_bias": True}, "attention_bias as True"),
        ("cohere", {"logit_scale": "half"}, "logit_scale as 'half', not a number"),
        ("cohere", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type as 'linear'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(kind: str, fields: dict[str, Any], why: str) -> None:
    saved(kind)
    changed(**fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_is_named(kind: str) -> None:
    tensors = saved(kind)
    gone = next(key for key in tensors if ".layers.1." in key and key.endswith("layernorm.weight"))
    del tensors[gone]
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match=f"{gone} is missing"):
        cs.convert("model", layout="gguf")


def test_an_output_layer_of_its_own_has_no_place_in_command_r() -> None:
    tensors = saved("cohere")
    save_file({**tensors, "lm_head.weight": torch.ones(96, 64).bfloat16()}, "model/model.safetensors", {"format": "pt"})
    changed(tie_word_embeddings=False)
    with pytest.raises(
        cs.PlanError, match="1 tensor has no name in llama.cpp's architecture command-r: lm_head.weight"
    ):
        cs.convert("model", layout="gguf")
