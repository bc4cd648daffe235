"""``fits`` of models of transformers: whether from_pretrained loads them, and what equal shapes do not show."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.transformers_models import BERT, MIXTRAL, opened, quiet, saved, write_config

# Mixtures of experts: transformers saves one tensor for each expert, and stacks them when it loads them.

EXPERTS = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "num_experts": 2, "n_routed_experts": 2,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_num_experts": 2, "moe_k": 1, "n_group": 1, "topk_group": 1,
    "num_hidden_layers": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "use_mamba_kernels": False,
}  # fmt: skip
LARGE = 5_000_000
FAMILIES = {
    "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM", "olmoe": "OlmoeForCausalLM",
}  # fmt: skip


def strictly(architecture: str, folder: str) -> bool:
    model, _ = opened(architecture, folder)
    try:
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=True)
    except RuntimeError:
        return False
    return True


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", FAMILIES)
def test_experts_fit_as_transformers_saves_them(kind: str, ckpt: Callable[..., Any]) -> None:
    saved("moe", {**EXPERTS, "model_type": kind}, FAMILIES[kind])
    found = cs.fits("moe", "moe/config.json")
    assert (found.fits, found.strict, found.loader) == (True, False, FAMILIES[kind])
    assert not strictly(FAMILIES[kind], "moe")
    assert not opened(FAMILIES[kind], "moe")[1]
    shown = ckpt("fits", "moe", "moe/config.json")
    assert shown.code == 0
    first, second, *others = shown.out.splitlines()
    assert first == f"fits: from_pretrained of {FAMILIES[kind]} loads it"
    assert second.startswith("load_state_dict(strict=True) alone would fail: ")
    assert len(others) == 2
    assert others[-1].split()[:2] == ["ckpt", "transplant"]
    assert ckpt(*found.command[1:]).code == 0
    assert cs.fits(found.command[-1], "moe").strict


def tiny(kind: str) -> tuple[Any, str]:
    """Return a small configuration of a model type and the name of its class; raises if the class needs other fields."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    config = transformers.CONFIG_MAPPING[kind].from_dict(EXPERTS)
    name = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) or auto.MODEL_MAPPING_NAMES[kind]
    with torch.device("meta"):
        model = getattr(transformers, name)._from_config(config)
    if sum(one.numel() for one in model.parameters()) > LARGE:
        raise ValueError(kind)
    return config, name


@pytest.mark.long
def test_every_type_whose_weights_transformers_converts_fits_as_it_is_saved() -> None:
    """Every conversion: of the two dozen types that Qwen2-MoE's conversion is used for, a third."""
    transformers = pytest.importorskip("transformers")
    from transformers import conversion_mapping as conversions
    from transformers.core_model_loading import WeightConverter

    quiet()
    named = conversions._MODEL_TO_CONVERSION_PATTERN
    mapping = conversions._build_checkpoint_conversion_mapping()
    seen = set()
    kinds = sorted({*mapping, *named} & {*transformers.CONFIG_MAPPING}, key=lambda kind: (kind not in FAMILIES, kind))
    met = Counter[str]()
    for kind in kinds:
        conversion = named.get(kind, kind)
        if not any(isinstance(one, WeightConverter) for one in mapping.get(conversion) or ()):
            continue
        met[conversion] += 1
        if kind not in FAMILIES and met[conversion] > 3 and met[conversion] % 3:
            continue
        try:
            config, name = tiny(kind)
            getattr(transformers, name)._from_config(config).save_pretrained(kind)
        except Exception:  # some classes need other fields, or are large whatever the fields
            continue
        seen.add(kind)
        assert cs.fits(kind, f"{kind}/config.json").fits, kind
        assert not opened(name, kind)[1], kind
        shutil.rmtree(kind)
    assert len(seen) > 30
    assert {*FAMILIES} <= seen


@pytest.mark.long
def test_experts_that_are_not_all_there_do_not_fit() -> None:
    saved("moe", MIXTRAL, "MixtralForCausalLM")
    state = load_file("moe/model.safetensors")
    for change in (
        {key: one for key, one in state.items() if ".1.block_sparse_moe.gate" not in key},
        {**state, "more.weight": torch.ones(3)},
        {key: (torch.ones(24, 17) if key.endswith("experts.3.w1.weight") else one) for key, one in state.items()},
        {f"module.{key}": one for key, one in state.items()},
    ):
        save_file(change, "changed.safetensors")
        found = cs.fits("changed.safetensors", "moe/config.json")
        assert not found.fits, found
        assert found.verdict.startswith("does not fit: ")


def test_a_base_model_does_not_fit_a_class_with_a_head() -> None:
    saved("base", BERT, "BertModel")
    write_config("dst/config.json", BERT, "BertForSequenceClassification", num_labels=5)
    found = cs.fits("base", "dst/config.json")
    assert (found.fits, found.loader) == (False, "")


@pytest.mark.long
def test_every_tensor_is_listed_if_asked_for(ckpt: Callable[..., Any]) -> None:
    saved("moe", {**EXPERTS, "model_type": "mixtral"}, "MixtralForCausalLM")
    shown = ckpt("fits", "moe", "moe/config.json", "-v").out
    assert "missing" in shown.splitlines()[2]
    assert "experts" in shown
    data = json.loads(ckpt("fits", "moe", "moe/config.json", "--json").out)
    assert (data["fits"], data["strict"], data["loader"]) == (True, False, "MixtralForCausalLM")
    assert data["missing"]


# Equal shapes, computed differently.

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 6, "hidden_size": 16,
    "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
GEMMA = {**LLAMA, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "tie_word_embeddings": False}
GRANITE = {**LLAMA, "model_type": "granite", "architectures": ["GraniteForCausalLM"]}


def pair(fields: dict[str, Any], change: dict[str, Any]) -> list[str]:
    """Return the notes of ``fits`` on two folders of equal shapes."""
    saved("a", {**fields, **change}, fields["architectures"][0])
    saved("b", fields, fields["architectures"][0])
    found = cs.fits("a", "b")
    assert found.strict, found
    return list(found.notes)


SAID: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        LLAMA,
        {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8},
        "num_attention_heads is 2 in a, 4 in b",
    ),
    (LLAMA, {"rope_theta": 5e5}, "rope_theta is 500000.0 in a, 10000.0 in b"),
    (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "linear"),
    (LLAMA, {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05 in a, 1e-06 in b"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act is gelu in a, silu in b"),
    (
        QWEN,
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "use_sliding_window is true in a",
    ),
    (GEMMA, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    (GEMMA, {"final_logit_softcapping": 10.0}, "final_logit_softcapping is 10.0 in a, 30.0 in b"),
    (GEMMA, {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16 in a, 256 in b"),
    (GRANITE, {"logits_scaling": 8.0}, "logits_scaling is 8.0 in a, 1.0 in b"),
    (GRANITE, {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0 in a, 1.0 in b"),
    (
        BERT | {"architectures": ["BertForMaskedLM"]},
        {"layer_norm_eps": 1e-5},
        "layer_norm_eps is 1e-05 in a, 1e-12 in b",
    ),
]


@pytest.mark.costly
@pytest.mark.parametrize(("fields", "change", "said"), SAID, ids=lambda one: str(one)[:60])
def test_a_field_that_changes_results_is_said(fields: dict[str, Any], change: dict[str, Any], said: str) -> None:
    (note,) = pair(fields, change)
    assert note.startswith("equal weights compute different results, because the config.json files differ: ")
    assert said in note


@pytest.mark.costly
@pytest.mark.parametrize(
    "change",
    [
        {"use_cache": False}, {"dtype": "float32"}, {"transformers_version": "4.40.0"}, {"_name_or_path": "x/y"},
        {"attention_dropout": 0.1}, {"initializer_range": 0.1}, {"max_position_embeddings": 4096}, {},
    ],
    ids=str,
)  # fmt: skip
def test_a_field_that_changes_no_result_is_not_said(change: dict[str, Any]) -> None:
    saved("a", LLAMA, "LlamaForCausalLM")
    saved("b", LLAMA, "LlamaForCausalLM")
    config = json.loads(Path("a/config.json").read_text())
    Path("a/config.json").write_text(json.dumps({**config, **change}))
    for destination in ("b", "b/config.json", "a"):
        found = cs.fits("a", destination)
        assert (found.strict, found.notes) == (True, ())


def test_the_configuration_of_another_file_is_compared_too(ckpt: Callable[..., Any]) -> None:
    saved("a", LLAMA, "LlamaForCausalLM")
    write_config("b.json", {**LLAMA, "rope_theta": 5e5})
    shown = ckpt("fits", "a/model.safetensors", "b.json")
    assert shown.code == 0
    assert "rope_theta is 10000.0 in a/model.safetensors, 500000.0 in b.json" in " ".join(shown.err.split())


def tokenised(folder: str, *tokens: str) -> None:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[0]}
    Path(folder, "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


@pytest.mark.long
def test_other_tokens_are_said() -> None:
    for name in ("a", "b"):
        saved(name, LLAMA, "LlamaForCausalLM")
    tokenised("a", "?", "<s>", "</s>", "x", "y", "z")
    tokenised("b", "?", "<s>", "</s>", "y", "x", "z")
    for destination in ("b", "b/config.json"):
        (note,) = cs.fits("a", destination).notes
        assert note == "the tokenisers differ: row 3 is 'x' in a and 'y' in b/config.json", destination
    tokenised("b", "?", "<s>", "</s>", "x", "y", "z")
    assert cs.fits("a", "b").notes == ()


@pytest.mark.long
def test_an_own_output_layer_in_a_model_that_ties_it_is_said() -> None:
    saved("a", {**LLAMA, "tie_word_embeddings": False}, "LlamaForCausalLM")
    saved("b", {**LLAMA, "tie_word_embeddings": True}, "LlamaForCausalLM")
    (note,) = cs.fits("a", "b").notes
    assert "a stores both lm_head.weight and model.embed_tokens.weight as separate tensors, but b" in note
    assert not cs.fits("b", "a").fits


@pytest.mark.long
def test_other_labels_of_a_classifier_are_said() -> None:
    labels = ["bad", "good", "neutral"]
    for name, order in (("a", labels), ("b", labels[::-1]), ("c", labels)):
        saved(name, BERT, "BertForSequenceClassification", id2label=dict(enumerate(order)))
    (note,) = cs.fits("a", "b").notes
    assert (
        note
        == "row 0 of classifier.weight has different labels (id2label): bad in a, neutral in b/config.json; 1 other row too"
    )
    assert cs.fits("a", "c").notes == ()
