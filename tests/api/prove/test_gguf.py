"""GGUF files, whose tensors have other names and another layout, compared with the models that they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.vocabulary.replacement import PLAIN

from ..gguf.test_tokenizer import splitter, tokenizer

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {"head_dim": 16}, "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16}, "phi3": {}, "olmo2": {}, "starcoder2": {}, "cohere": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "mistral": {}, "gemma": {"head_dim": 16},
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "intermediate_size": 64, "sliding_window": 8},
    "deepseek_v3": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "q_lora_rank": 32, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1, "num_key_value_heads": 4, "n_shared_experts": 1,
    },
}  # fmt: skip


def made(model_type: str, folder: str = "model", **fields: Any) -> str:
    """A folder of a small model with random weights."""
    config = transformers.AutoConfig.for_model(**{"model_type": model_type, **SIZES, **MODELS[model_type], **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn_like(one))  # norms too
    model.save_pretrained(folder)
    return folder


def as_gguf(folder: str, path: str = "model.gguf", **options: Any) -> str:
    cs.apply(cs.convert(folder, layout="gguf", **options), path)
    return path


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_a_gguf_computes_what_its_model_computes(model_type: str) -> None:
    folder = made(model_type)
    proof = cs.prove(folder, as_gguf(folder))
    assert proof.verdict == "SAME", [proof, *proof.blocks]
    assert len(proof.blocks) > 2


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("gguf_type", "least"), [("q8_0", 1e-3), ("q4_0", 1e-2), ("mxfp4", 1e-2)])
def test_codes_in_blocks_are_equivalent_within_their_rounding(gguf_type: str, least: float) -> None:
    folder = made("llama")
    proof = cs.prove(folder, as_gguf(folder, gguf_type=gguf_type))
    assert proof.verdict == "EQUIVALENT", proof
    assert proof.output.distance.error > least
    assert f"{gguf_type} codes" in proof.second.dtypes


@pytest.mark.long
def test_two_gguf_files_are_compared_with_a_configuration_beside_one() -> None:
    folder = made("llama")
    first, second = as_gguf(folder, "a.gguf"), as_gguf(folder, "b.gguf", gguf_type="q8_0")
    assert cs.prove(first, second, model=f"{folder}/config.json").verdict == "EQUIVALENT"
    with pytest.raises(cs.ConfigError, match=r"there is no config\.json"):
        cs.prove(first, second)


@pytest.mark.costly
@pytest.mark.parametrize("gguf_type", [None, "q8_0"])
def test_a_fault_in_a_gguf_is_found_and_named(gguf_type: str | None) -> None:
    """Keys whose rows are not in llama.cpp's order: the file loads, and speaks nonsense."""
    folder = made("llama")
    state = load_file(f"{folder}/model.safetensors")
    key = "model.layers.1.self_attn.k_proj.weight"
    state[key] = state[key].reshape(2, 8, 2, 64).transpose(1, 2).reshape(32, 64).contiguous()
    Path("other").mkdir()
    Path("other/config.json").write_bytes(Path(f"{folder}/config.json").read_bytes())
    save_file(state, "other/model.safetensors", metadata={"format": "pt"})
    proof = cs.prove(folder, as_gguf("other", gguf_type=gguf_type))
    assert proof.verdict == "DIFFERENT"
    assert proof.drift is not None
    assert proof.drift.name.startswith("model.layers.1")
    if gguf_type is None:
        assert proof.differing == 1
        assert [one.key for one in proof.changed] == [key]


@pytest.mark.long
def test_prove_is_an_option_of_a_conversion_to_gguf(ckpt: Any) -> None:
    made("llama")
    done = ckpt("convert", "model", "--gguf-type", "q8_0", "-o", "out.gguf", "--prove")
    assert done.code == 0, done
    assert "EQUIVALENT" in done.out + done.err


def test_an_architecture_whose_layout_is_not_known_is_an_error() -> None:
    folder = made("llama")
    as_gguf(folder, metadata={"general.architecture": "mamba"})
    with pytest.raises(cs.PlanError, match="its architecture is mamba"):
        cs.prove(folder, "model.gguf")


def test_a_file_is_closed_if_its_network_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.api.prove import opening

    folder = made("llama")
    as_gguf(folder)
    closed: list[Any] = []
    monkeypatch.setattr(opening, "close_plan", closed.append)

    def refuse(*_: Any, **__: Any) -> None:
        raise cs.ConfigError("so")

    monkeypatch.setattr(opening, "plan_into", refuse)
    with pytest.raises(cs.ConfigError):
        cs.prove("model.gguf", "model.gguf", model=f"{folder}/config.json")
    assert len(closed) == 1


# Two GGUF files with other tokens.


def listed(*exchanged: str) -> dict[str, Any]:
    found = tokenizer(splitter(r"\p{L}+"), added_tokens=[{"id": 5, "content": "<s>", **PLAIN, "special": True}])
    tokens = found["model"]["vocab"]
    tokens |= {f"t{number}": number for number in range(6, 64)}
    if exchanged:
        first, second = exchanged
        tokens[first], tokens[second] = tokens[second], tokens[first]
    return found


def with_tokens(*exchanged: str) -> None:
    """Write a.gguf; same.gguf, with other tokens of the same rows; moved.gguf, with the rows of these tokens, too."""
    rows = [listed()["model"]["vocab"][token] for token in exchanged]
    made("llama", "a")
    Path("a/tokenizer.json").write_text(json.dumps(listed()))
    for name in ("same", "moved"):
        shutil.copytree("a", name)
        Path(name, "tokenizer.json").write_text(json.dumps(listed(*exchanged)))
    state = load_file("moved/model.safetensors")
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key][rows] = state[key][rows[::-1]].clone()
    save_file(state, "moved/model.safetensors", {"format": "pt"})
    for name in ("a", "same", "moved"):
        Path("gguf").mkdir(exist_ok=True)
        as_gguf(name, f"gguf/{name}.gguf")
    Path("bare").mkdir()
    shutil.copy("a/config.json", "bare")


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("config", ["a/config.json", "bare/config.json"])
def test_gguf_files_with_other_tokens_are_compared_token_by_token(config: str, ckpt: Any) -> None:
    with_tokens("t10", "t20")
    moved = cs.prove("gguf/a.gguf", "gguf/moved.gguf", model=config)
    assert moved.verdict == "EQUIVALENT"
    said = "the token lists differ: only the 64 tokens that are in both are compared"
    assert said in moved.notes
    assert "the tokenisers differ: row 10 is 't10' in gguf/a.gguf and 't20' in gguf/moved.gguf" in moved.notes
    same = cs.prove("gguf/a.gguf", "gguf/same.gguf", model=config)
    assert (same.verdict, same.drift.name if same.drift else "") == ("DIFFERENT", "model.embed_tokens")
    assert said in same.notes
    alike = cs.prove("gguf/same.gguf", "same", model=config)
    assert (alike.verdict, [note for note in alike.notes if "differ" in note]) == ("SAME", [])
    assert cs.prove("a", "gguf/moved.gguf").verdict == "EQUIVALENT"
    assert ckpt("prove", "gguf/a.gguf", "gguf/same.gguf", "--model", config).code == 1


@pytest.mark.long
def test_texts_are_not_cut_by_the_tokeniser_of_other_tokens() -> None:
    with_tokens("a", "b")
    Path("texts.txt").write_text("a b a a\n")
    shutil.copy("same/tokenizer.json", "gguf")
    with pytest.raises(cs.ConfigError, match="the tokeniser next to gguf/a.gguf has other tokens than this GGUF file"):
        cs.prove("gguf/a.gguf", "gguf/moved.gguf", model="a/config.json", inputs="texts.txt")
    model = {**listed()["model"], "merges": []}
    splits = {"version": "1.0", "added_tokens": listed()["added_tokens"], "pre_tokenizer": {"type": "Whitespace"}}
    Path("gguf/tokenizer.json").write_text(json.dumps({**splits, "model": model}))
    Path("gguf/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    proof = cs.prove("gguf/a.gguf", "gguf/moved.gguf", model="a/config.json", inputs="texts.txt")
    assert proof.verdict == "EQUIVALENT"
