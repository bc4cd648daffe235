"""DeepSeek V2 and V3 in llama.cpp's layout, and back to a folder that transformers opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.gguf.deepseek import DEFAULTS

from ...helpers.deepseek_models import KINDS, LAYERS, SIZES, as_fp8, opened, saved, with_predicting_layer
from .test_layouts import read

HEADS, PLAIN, VALUE, RANK, ROTARY = (
    SIZES[name]
    for name in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "qk_rope_head_dim")
)
A = "deepseek2"


def entries(path: str) -> dict[str, str]:
    with cs.open_checkpoint(path) as found:
        return dict(found.metadata)


def changed(**fields: Any) -> None:
    """Change fields of the config.json of the folder ``model``; None removes one."""
    place = Path("model/config.json")
    config = {**json.loads(place.read_text()), **fields}
    place.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_way_back_with_the_same_values(kind: str, dtype: str) -> None:
    tensors = saved(kind)
    first, state = opened("model")
    cs.apply(cs.convert("model", layout="gguf", dtype=dtype), "x.gguf")
    assert cs.verify("x.gguf").ok
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back/")
    assert cs.verify("back/").ok
    files = load_file("back/model.safetensors")
    assert set(files) == set(tensors)
    assert all(torch.equal(files[key], value) for key, value in tensors.items())
    shutil.copy("model/config.json", "back/config.json")
    second, found = opened("back")
    assert set(found) == set(state)
    assert all(torch.equal(found[key], value) for key, value in state.items())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(first(tokens).logits, second(tokens).logits)


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_of_gguf_py(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    tensors = saved(kind)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, LAYERS)
    want = set()
    for key in tensors:
        whole = key.replace("e_score_correction_bias", "e_score_correction.bias")
        numbers = [part for part in whole.split(".experts.")[-1:] if ".experts." in whole]
        whole = whole.replace(f".experts.{numbers[0].split('.')[0]}.", ".experts.") if numbers else whole
        parts = [whole.replace("kv_b_proj", name) for name in ("k_b_proj", "v_b_proj")] if "kv_b_proj" in key else None
        want |= {names.get_name(one, (".weight", ".bias")) for one in parts or [whole]}
    assert None not in want
    assert set(read("x.gguf")) == want


def test_the_matrix_of_keys_and_values_is_split_and_that_of_keys_turned() -> None:
    tensors = saved("v3")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")
    whole = tensors["model.layers.2.self_attn.kv_b_proj.weight"].view(HEADS, PLAIN + VALUE, RANK)
    assert torch.equal(found["blk.2.attn_k_b.weight"], whole[:, :PLAIN].transpose(1, 2))
    assert torch.equal(found["blk.2.attn_v_b.weight"], whole[:, PLAIN:])
    bias = tensors["model.layers.2.mlp.gate.e_score_correction_bias"]
    assert torch.equal(found["blk.2.exp_probs_b.bias"], bias.float())
    experts = [tensors[f"model.layers.2.mlp.experts.{n}.up_proj.weight"] for n in range(SIZES["n_routed_experts"])]
    assert torch.equal(found["blk.2.ffn_up_exps.weight"], torch.stack(experts))
    assert found["blk.2.ffn_gate_inp.weight"].dtype == torch.float32


COMMON = {
    "block_count": "3", "context_length": "128", "embedding_length": "64", "feed_forward_length": "96",
    "vocab_size": "96", "attention.head_count": "4", "attention.head_count_kv": "1", "attention.kv_lora_rank": "32",
    "attention.key_length": "48", "attention.value_length": "32", "attention.key_length_mla": "48",
    "attention.value_length_mla": "24", "rope.dimension_count": "16", "leading_dense_block_count": "1",
    "expert_count": "12", "expert_used_count": "2", "expert_shared_count": "2", "expert_feed_forward_length": "32",
    "attention.layer_norm_rms_epsilon": "1e-06", "rope.freq_base": "10000.0",
}  # fmt: skip
SCALED = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": "4.0", "rope.scaling.original_context_length": "32",
    "rope.scaling.yarn_log_multiplier": "0.0707", "rope.scaling.yarn_beta_fast": "32.0",
    "rope.scaling.yarn_beta_slow": "1.0",
}  # fmt: skip
OF_V3 = {"expert_weights_scale": "2.5", "expert_weights_norm": "true", "expert_gating_func": "2"}
OF_V2 = {"expert_weights_scale": "1.0", "expert_gating_func": "1"}
GROUPS = {"expert_group_count": "4", "expert_group_used_count": "2"}
WANTED = {
    "v3": {**COMMON, **SCALED, **OF_V3, **GROUPS, "attention.q_lora_rank": "32"},
    "v3-without-query-rank": {**COMMON, **OF_V3, **GROUPS},
    "v2": {**COMMON, **OF_V2, **GROUPS, "attention.q_lora_rank": "32"},
    "v2-lite": {**COMMON, **SCALED, **OF_V2, "expert_group_count": "1", "expert_group_used_count": "1"},
}


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_are_those_of_convert_hf_to_gguf(kind: str) -> None:
    saved(kind)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = entries("x.gguf")
    assert found["general.architecture"] == A
    assert {key.partition(".")[2]: said for key, said in found.items() if key.startswith(f"{A}.")} == WANTED[kind]
    with cs.open_checkpoint("x.gguf") as opened_again:
        kinds = {key.partition(".")[2]: one.kind for key, one in opened_again.header.stored.items()}
    assert {kinds[key] for key in ("expert_weights_scale", "rope.freq_base")} == {6}
    assert {kinds[key] for key in ("expert_gating_func", "attention.key_length_mla", "expert_count")} == {4}


def test_names_of_entries_are_those_of_gguf_py() -> None:
    gguf = pytest.importorskip("gguf")
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
    known = {value for group in groups for value in vars(group).values() if isinstance(value, str)}
    assert {f"{{arch}}.{name}" for wanted in WANTED.values() for name in wanted} <= known


@pytest.mark.parametrize("place", [0, 1])
def test_defaults_are_those_of_transformers(place: int) -> None:
    transformers = pytest.importorskip("transformers")
    found = (transformers.DeepseekV2Config, transformers.DeepseekV3Config)[place]()
    assert {name: getattr(found, name) or 0 for name in DEFAULTS} == {
        key: both[place] for key, both in DEFAULTS.items()
    }
    assert found.norm_topk_prob is bool(place)
    assert found.routed_scaling_factor == (1.0, 2.5)[place]
    assert (found.n_group, found.topk_group) == ((None, None), (8, 4))[place]


def test_kimi_k2_is_a_deepseek_v3() -> None:
    saved("v3")
    changed(model_type="kimi_k2", scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = entries("x.gguf")
    assert {key.partition(".")[2]: said for key, said in found.items() if key.startswith(f"{A}.")} == WANTED["v3"]


@pytest.mark.long
def test_groups_that_llama_cpp_chooses_otherwise_are_noted() -> None:
    saved("v2")
    assert any(
        "whose two highest scores have the highest sum" in one for one in cs.convert("model", layout="gguf").notes
    )


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("with_behind", [False, True])
def test_a_model_of_8_bit_floats_becomes_blocks_in_one_command(with_behind: bool, ckpt: Any) -> None:
    tensors = saved("v3")
    as_fp8(with_predicting_layer(tensors) if with_behind else tensors)
    told = ckpt("convert", "model", "-o", "out.gguf", "--dequantize", "--layout", "gguf", "--gguf-type", "q8_0")
    assert told.code == 0, told
    assert ("left out: model.layers.3 (" in told.err + told.out) == with_behind
    assert cs.verify("out.gguf").ok
    with cs.open_checkpoint("out.gguf") as found:
        assert "quantization_config" not in found.metadata
        assert found.metadata[f"{A}.block_count"] == str(LAYERS)
        assert not any(key.startswith(f"blk.{LAYERS}.") for key in found)
        assert found["blk.1.attn_k_b.weight"].dtype == found["blk.1.ffn_up_exps.weight"].dtype == "q8_0"
        assert found["blk.1.ffn_gate_inp.weight"].dtype == "float32"
    # decoded in float32 and rounded once: the same blocks as those of the decoded model, and the same weights back
    cs.apply(cs.convert("model", dequantize=True, dtype="float32"), "plain/")
    cs.apply(cs.convert("plain/", layout="gguf", gguf_type="q8_0"), "want.gguf")
    for name in ("out", "want"):
        back = cs.convert(f"{name}.gguf", layout="transformers", dequantize=True, dtype="bfloat16")
        cs.apply(back, f"{name}/")
    want, codes = load_file("want/model.safetensors"), load_file("out/model.safetensors")
    assert set(codes) == set(want) == set(tensors)
    assert all(torch.equal(codes[key], value) for key, value in want.items())
    shutil.copy("plain/config.json", "out/config.json")
    opened("out")


@pytest.mark.long
def test_a_model_of_8_bit_floats_comes_back_as_the_weights_that_they_stand_for() -> None:
    as_fp8(saved("v3"))
    cs.apply(cs.convert("model", layout="gguf", dequantize=True), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back.safetensors")
    cs.apply(cs.convert("model", dequantize=True), "plain.safetensors")
    back, plain = load_file("back.safetensors"), load_file("plain.safetensors")
    assert all(torch.equal(back[key], value) for key, value in plain.items())
    with pytest.raises(cs.PlanError, match="the weights of model are quantised") as caught:
        cs.convert("model", layout="gguf")
    assert "--dequantize" in str(caught.value.hint)


def older(*, has_both: bool) -> None:
    """Write old.gguf, as llama.cpp wrote it before April 2025, or as it was written for a while, with both forms."""
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    tensors, metadata = read("x.gguf"), entries("x.gguf")
    for layer in range(LAYERS):
        names = [f"blk.{layer}.attn_{name}_b.weight" for name in ("k", "v")]
        keys, values = (tensors[name] if has_both else tensors.pop(name) for name in names)
        whole = torch.cat([keys.transpose(1, 2), values], 1)
        tensors[f"blk.{layer}.attn_kv_b.weight"] = whole.reshape(-1, RANK)
    for key in [key for key in metadata if key.endswith("_mla")]:
        del metadata[key]
    metadata |= {f"{A}.attention.key_length": str(PLAIN + ROTARY), f"{A}.attention.value_length": str(VALUE)}
    metadata[f"{A}.attention.head_count_kv"] = str(HEADS)
    save_file({key: value.contiguous() for key, value in tensors.items()}, "old.safetensors", metadata)
    cs.apply(cs.convert("old.safetensors"), "old.gguf")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("has_both", [False, True])
def test_older_files_are_read(has_both: bool) -> None:
    tensors = saved("v2-lite")
    older(has_both=has_both)
    plan = cs.convert("old.gguf", layout="transformers", dtype="bfloat16")
    assert any("whose values the output already has from attn_kv_b" in note for note in plan.notes) == has_both
    cs.apply(plan, "back.safetensors")
    back = load_file("back.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())


@pytest.mark.costly
@pytest.mark.parametrize(
    "gone",
    [
        "model.layers.1.self_attn.kv_b_proj.weight",
        "model.layers.2.mlp.experts.10.up_proj.weight",
        "model.layers.0.self_attn.q_a_layernorm.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(gone: str) -> None:
    tensors = saved("v3")
    del tensors[gone]
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match=f"model lacks 1 tensor that config.json describes: {gone}"):
        cs.convert("model", layout="gguf")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kv_lora_rank": 16}, r"kv_a_proj_with_mqa.weight of model is \(48, 64\), but must be \(32, 64\)"),
        ({"v_head_dim": 32}, r"kv_b_proj.weight of model is \(224, 32\), but must be \(256, 32\)"),
        ({"qk_nope_head_dim": 24, "v_head_dim": 32}, r"q_b_proj.weight of model is \(192, 32\), but must be \(160, 32"),
        ({"vocab_size": 95}, r"embed_tokens.weight of model is \(96, 64\), but must be \(95, 64\)"),
        ({"n_shared_experts": 1}, r"shared_experts.gate_proj.weight of model is \(64, 64\), but must be \(32, 64\)"),
        ({"n_routed_experts": 8, "n_group": 1, "topk_group": 1}, r"mlp.gate.weight of model is \(12, 64\), but must be"),
        ({"n_routed_experts": 16}, "lacks 24 tensors that config.json describes: model.layers.1.mlp.experts.12"),
        ({"first_k_dense_replace": 2}, "lacks 3 tensors that config.json describes: model.layers.1.mlp.gate_proj"),
        ({"num_hidden_layers": 2}, "gives num_hidden_layers as 2, but model has model.layers.2"),
        ({"num_hidden_layers": 4}, "lacks .* that config.json describes: model.layers.3"),
        ({"n_group": 5}, "n_group as 5 and topk_group as 2, but n_group must divide the number of experts, 12"),
        ({"num_experts_per_tok": 13}, "num_experts_per_tok as 13, but there are only 12 experts"),
        ({"kv_lora_rank": 0}, "kv_lora_rank as 0, but llama.cpp needs a number above 0"),
        ({"q_lora_rank": "32"}, "q_lora_rank as '32', but llama.cpp needs a number"),
        ({"num_hidden_layers": 1 << 20, "n_routed_experts": 1 << 20}, "more than 1000000 experts"),
        ({"scoring_func": "softmax"}, "gives scoring_func as 'softmax'"),
        ({"topk_method": "greedy"}, "gives topk_method as 'greedy'"),
        ({"num_key_value_heads": 2}, "gives num_key_value_heads as 2"),
        ({"moe_layer_freq": 2}, "gives moe_layer_freq as 2"),
        ({"rope_interleave": False}, "gives rope_interleave as False"),
        ({"attention_bias": True}, "gives attention_bias as True"),
        ({"hidden_act": "gelu"}, "gives hidden_act as 'gelu'"),
        ({"rope_scaling": {"mscale": 1.0}}, "gives mscale as 1.0 and mscale_all_dim as 0.707"),
        ({"rope_scaling": {"mscale": 0, "mscale_all_dim": 0}}, "gives mscale as 0 and mscale_all_dim as 0"),
        ({"rope_scaling": {"attention_factor": 1.5}}, "gives attention_factor as 1.5"),
        ({"rope_scaling": {"factor": 0.5}}, "gives the factor 0.5 of yarn"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "for the architecture deepseek2"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_an_error(fields: dict[str, Any], why: str) -> None:
    saved("v3")
    changed(**fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


@pytest.mark.costly
@pytest.mark.parametrize(
    "key",
    [
        "model.layers.1.self_attn.kv_b_proj.bias",
        "model.layers.1.self_attn.o_proj.bias",
        "model.layers.1.mlp.experts.12.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ],
)
def test_a_tensor_that_has_no_place_is_an_error(key: str) -> None:
    tensors = saved("v3")
    save_file({**tensors, key: torch.ones(32, 64).bfloat16()}, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match=f"1 tensor has no name in llama.cpp's architecture deepseek2: {key}"):
        cs.convert("model", layout="gguf")


@pytest.mark.long
def test_buffers_that_transformers_computes_are_left_out() -> None:
    tensors = saved("v2")
    key = "model.layers.1.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, key: torch.ones(8)}, "model/model.safetensors", {"format": "pt"})
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert not any("rotary" in key for key in read("x.gguf"))


@pytest.mark.long
def test_a_tied_output_layer_is_stored_once_and_comes_back_as_the_embedding() -> None:
    tensors = saved("v2", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert "output.weight" not in read("x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back/")
    shutil.copy("model/config.json", "back/config.json")
    _, state = opened("back")
    assert torch.equal(state["lm_head.weight"], tensors["model.embed_tokens.weight"])


@pytest.mark.costly
@pytest.mark.parametrize(
    ("gone", "entry", "why"),
    [
        ("blk.1.attn_v_b.weight", "", "lacks 1 tensor that its metadata describes: blk.1.attn_v_b.weight"),
        ("blk.2.ffn_up_exps.weight", "", "lacks 1 tensor that its metadata describes: blk.2.ffn_up_exps.weight"),
        ("", "leading_dense_block_count=2", "lacks 3 tensors that its metadata describes: blk.1.ffn_gate.weight"),
        ("", "attention.kv_lora_rank=16", r"attn_kv_a_mqa.weight of x.gguf is \(48, 64\), but must be \(32, 64\)"),
        ("", "attention.value_length_mla=32", r"attn_v_b.weight of x.gguf is \(4, 24, 32\), but must be \(4, 32, 32\)"),
        ("", "attention.head_count=8", r"attn_q_b.weight of x.gguf is \(192, 32\), but must be \(384, 32\)"),
        ("", "attention.head_count=", "the metadata has no deepseek2.attention.head_count"),
        ("", "attention.head_count=0", "deepseek2.attention.head_count in the metadata is 0"),
        (
            "",
            "rope.dimension_count=48",
            "rope.dimension_count in the metadata is 48, .* length of an attention key, 48",
        ),
        ("", "block_count=4", "lacks .* that its metadata describes: blk.3"),
    ],
)
def test_the_way_back_checks_all_tensors(gone: str, entry: str, why: str) -> None:
    saved("v3")
    key, _, said = entry.partition("=")
    given = {f"{A}.{key}": said} if key else {}
    cs.apply(cs.convert("model", layout="gguf", metadata=given), "x.gguf")
    if gone:
        cs.apply(cs.filter("x.gguf", exclude=[gone]), "y.gguf")
        Path("y.gguf").replace("x.gguf")
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("x.gguf", layout="transformers")


def test_a_wrong_entry_is_corrected_with_what_is_advised() -> None:
    saved("v3")
    cs.apply(cs.convert("model", layout="gguf", metadata={f"{A}.expert_shared_count": "0"}), "x.gguf")
    with pytest.raises(cs.PlanError, match=r"expert_shared_count in the metadata is 0") as caught:
        cs.convert("x.gguf", layout="transformers")
    assert f"ckpt convert FILE.gguf --set-metadata {A}.expert_shared_count=NUMBER" in str(caught.value.hint)
    cs.apply(cs.convert("x.gguf", metadata={f"{A}.expert_shared_count": "2"}), "y.gguf")
    assert cs.convert("y.gguf", layout="transformers").counts["copied"] > 0


@pytest.mark.long
def test_codes_are_not_joined() -> None:
    saved("v3")
    cs.apply(cs.convert("model", layout="gguf", gguf_type="q8_0"), "x.gguf")
    with pytest.raises(cs.PlanError, match="are quantised in blocks") as caught:
        cs.convert("x.gguf", layout="transformers")
    assert "--dequantize" in str(caught.value.hint)
