"""Output layers that are the embedding: PEFT adapts the two apart, and so do we. Figures were held against peft 0.21.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "vocab_size": 12}
APART = "the output layer has its own weights, so config.json gets tie_word_embeddings: false"


def folder(name: str, tensors: dict[str, torch.Tensor], config: dict[str, Any], weights: str = "model") -> None:
    Path(name).mkdir()
    save_file(tensors, f"{name}/{weights}.safetensors")
    Path(name, "adapter_config.json" if weights != "model" else "config.json").write_text(json.dumps(config))


def base(name: str = "base", seed: int = 0, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    tensors = {EMBEDDING: torch.randn(12, 8), "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8), **more}
    folder(name, tensors, CONFIG)
    return tensors


def adapter(tensors: dict[str, torch.Tensor], **said: Any) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **said}
    folder("ad", {f"base_model.model.{key}": value for key, value in tensors.items()}, config, "adapter_model")


def merged(*names: str, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any], tuple[str, ...]]:
    plan = cs.lora_merge(*names, **options)
    cs.apply(plan, "out/")
    assert cs.verify("out").ok
    return load_file("out/model.safetensors"), json.loads(Path("out/config.json").read_text()), plan.notes


def factors(name: str) -> dict[str, torch.Tensor]:
    if name == "embed_tokens":
        return {
            "model.embed_tokens.lora_embedding_A": torch.randn(2, 12),
            "model.embed_tokens.lora_embedding_B": torch.randn(8, 2),
        }
    return {"lm_head.lora_A.weight": torch.randn(2, 8), "lm_head.lora_B.weight": torch.randn(12, 2)}


@pytest.mark.long
def test_factors_of_the_embedding_leave_the_output_layer_as_it_was() -> None:
    tensors, made = base(), factors("embed_tokens")
    adapter(made, target_modules=["embed_tokens"])
    out, config, notes = merged("base", "ad")
    a, b = made.values()
    torch.testing.assert_close(out[EMBEDDING], tensors[EMBEDDING] + 2 * (b @ a).T)
    assert torch.equal(out[HEAD], tensors[EMBEDDING])
    assert config["tie_word_embeddings"] is False
    assert APART in notes


def test_an_embedding_that_was_saved_leaves_the_output_layer_as_it_was() -> None:
    tensors, new = base(), torch.randn(12, 8)
    adapter({"model.embed_tokens.weight": new}, target_modules=[], modules_to_save=["embed_tokens"])
    out, config, _ = merged("base", "ad")
    assert torch.equal(out[EMBEDDING], new)
    assert torch.equal(out[HEAD], tensors[EMBEDDING])
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize("rows", [12, 14])
def test_an_output_layer_and_an_embedding_that_were_both_saved_stay_apart(rows: int) -> None:
    base()
    embedding, head = torch.randn(rows, 8), torch.randn(rows, 8)
    saved = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    adapter(saved, target_modules=[], modules_to_save=["lm_head", "embed_tokens"])
    out, config, notes = merged("base", "ad")
    assert torch.equal(out[EMBEDDING], embedding)
    assert torch.equal(out[HEAD], head)
    assert config["tie_word_embeddings"] is False
    assert APART in notes


def test_equal_matrices_that_were_both_saved_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.api.lora.merge.BLOCK", 64)  # two rows
    base()
    new = torch.randn(12, 8)
    saved = {"model.embed_tokens.weight": new, "lm_head.weight": new.clone()}
    adapter(saved, target_modules=[], modules_to_save=["lm_head", "embed_tokens"])
    out, config, _ = merged("base", "ad")
    assert torch.equal(out[EMBEDDING], new)
    assert (HEAD in out, config["tie_word_embeddings"]) == (False, True)
    saved["lm_head.weight"][11, 7] += 1  # the last of its values
    save_file({f"base_model.model.{key}": value for key, value in saved.items()}, "ad/adapter_model.safetensors")
    assert HEAD in [step.key for step in cs.lora_merge("base", "ad").steps]


@pytest.mark.parametrize("stored", [True, False])
def test_factors_of_the_output_layer_leave_the_embedding_as_it_was(stored: bool) -> None:
    torch.manual_seed(0)
    more = {HEAD: torch.randn(12, 8)} if stored else {}
    tensors, made = base(**more), factors("lm_head")
    adapter(made, target_modules=["lm_head"])
    out, config, notes = merged("base", "ad")
    a, b = made.values()
    torch.testing.assert_close(out[HEAD], tensors[HEAD if stored else EMBEDDING] + 2 * b @ a)
    assert torch.equal(out[EMBEDDING], tensors[EMBEDDING])
    assert config["tie_word_embeddings"] is False
    assert APART in notes
    assert not any("if they differ" in note for note in notes)


@pytest.mark.long
def test_what_an_adapter_does_not_change_stays_tied() -> None:
    base()
    adapter({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(2, 8),
             "model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(8, 2)})  # fmt: skip
    out, config, notes = merged("base", "ad")
    assert (HEAD in out, config["tie_word_embeddings"], notes) == (False, True, ())


@pytest.mark.long
def test_an_embedding_of_other_rows_stays_the_output_layer_and_that_is_said() -> None:
    base()
    new = torch.randn(14, 8)
    adapter({"model.embed_tokens.weight": new}, target_modules=[], modules_to_save=["embed_tokens"])
    out, config, notes = merged("base", "ad")
    assert torch.equal(out[EMBEDDING], new)
    assert (HEAD in out, config["tie_word_embeddings"], config["vocab_size"]) == (False, True, 14)
    assert any("in the output layer, PEFT uses the rows of the base" in note for note in notes)


@pytest.mark.long
@pytest.mark.parametrize(("tying", "said"), [(True, False), (None, True)])
def test_weight_tying_means_the_output_layer_too(tying: bool | None, said: bool) -> None:
    base()
    adapter(
        {**factors("embed_tokens"), **factors("lm_head")}, target_modules=["embed_tokens"], ensure_weight_tying=tying
    )
    _, _, notes = merged("base", "ad")
    assert any("PEFT ignores" in note for note in notes) is said


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"embeddings": True}, {"model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_B"}),
        ({"save_modules": True}, {"model.embed_tokens.weight"}),
        ({}, set()),
    ],
)
def test_an_extracted_adapter_has_the_output_layer_beside_the_embedding(options: Any, keys: set[str]) -> None:
    tensors = base()
    change = torch.randn(12, 2) @ torch.randn(2, 8)
    folder("tuned", {**tensors, EMBEDDING: tensors[EMBEDDING] + change}, CONFIG)
    plan = cs.lora_extract("tuned", "base", rank=2, **options)
    (note,) = (one for one in plan.notes if "tied to an embedding, lm_head.weight (model.embed_tokens.weight): " in one)
    assert ("the adapter has both" in note) == bool(keys)
    assert ("--embeddings adds the embedding" in note) != bool(keys)
    cs.apply(plan, "ad/")
    assert cs.verify("ad").ok
    made = {
        key.removeprefix("base_model.model."): value for key, value in load_file("ad/adapter_model.safetensors").items()
    }
    assert made.keys() == {"lm_head.lora_A.weight", "lm_head.lora_B.weight"} | keys
    torch.testing.assert_close(
        made["lm_head.lora_B.weight"] @ made["lm_head.lora_A.weight"], change, rtol=1e-4, atol=1e-5
    )
    out, _, _ = merged("base", "ad")
    torch.testing.assert_close(out[HEAD], tensors[EMBEDDING] + change, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[EMBEDDING], tensors[EMBEDDING] + (change if keys else 0), rtol=1e-4, atol=1e-5)


def test_a_kept_plan_of_a_tied_model_is_carried_out() -> None:
    tensors = base()
    folder("tuned", {**tensors, EMBEDDING: tensors[EMBEDDING] + torch.ones(12, 1) @ torch.ones(1, 8)}, CONFIG)
    Path("plan.json").write_text(json.dumps(cs.lora_extract("tuned", "base", rank=1, embeddings=True).to_json()))
    cs.apply(cs.load_plan("plan.json"), "ad/")
    Path("merge.json").write_text(json.dumps(cs.lora_merge("base", "ad").to_json()))
    cs.apply(cs.load_plan("merge.json"), "out/")
    assert cs.verify("out").ok


@pytest.mark.long
def test_a_model_without_an_embedding_ties_nothing() -> None:
    torch.manual_seed(0)
    folder("base", {HEAD: torch.randn(12, 8)}, {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]})
    adapter(factors("lm_head"), target_modules=["lm_head"])
    _, config, notes = merged("base", "ad")
    assert ("tie_word_embeddings" in config, APART in notes) == (False, False)
