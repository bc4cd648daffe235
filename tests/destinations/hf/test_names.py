"""The names that a source has, and those that a destination of transformers has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.transformers_models import (
    BERT,
    GPT2,
    MIXTRAL,
    WAV2VEC2,
    model_of,
    opened,
    same,
    saved,
    section,
    write_config,
)

ENCODER = {"BertModel": "bert", "GPT2Model": "transformer", "Wav2Vec2Model": "wav2vec2"}
Run = Callable[..., Any]


def said(plan: cs.Plan) -> str:
    return " ".join(plan.notes)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("fields", "base", "headed"),
    [
        (BERT, "BertModel", "BertForSequenceClassification"),
        (GPT2, "GPT2Model", "GPT2LMHeadModel"),
        (WAV2VEC2, "Wav2Vec2Model", "Wav2Vec2ForCTC"),
    ],
)
def test_a_base_model_goes_into_a_headed_one_and_back_and_it_is_said(
    fields: dict[str, Any], base: str, headed: str
) -> None:
    prefix = ENCODER[base]
    source = saved("base", fields, base)
    write_config("headed/config.json", fields, headed)
    plan = cs.transplant("base", "headed/config.json")
    assert f"--map '={prefix}'" in said(plan)
    assert {step.key for step in plan.steps if step.kind == "initialised"}.isdisjoint(
        {f"{prefix}.{key}" for key in source.state_dict()}
    )
    cs.apply(plan, "out")
    model, faults = opened(headed, "out")
    assert not faults
    same(model, source, f"{prefix}.")
    back = cs.transplant("out", "base/config.json")
    assert f"--map '{prefix}='" in said(back)
    cs.apply(back, "back")
    model, faults = opened(base, "back")
    assert not faults
    same(model, source)


@pytest.mark.long
def test_rules_of_the_user_win_over_names_that_are_known() -> None:
    saved("base", BERT, "BertModel")
    write_config("headed/config.json", BERT, "BertForSequenceClassification")
    plan = cs.transplant("base", "headed/config.json", map=["pooler.dense=other"])
    missing = {step.key for step in plan.steps if step.reason == "missing"}
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} < missing
    assert {key for _, key in plan.unexpected} == {"pooler.dense.weight", "pooler.dense.bias"}
    excluded = cs.transplant("base", "headed/config.json", exclude=["pooler"])
    why = {step.key: step.reason for step in excluded.steps}
    assert why["bert.pooler.dense.weight"] == "excluded"
    spec = cs.transplant("base/model.safetensors:encoder:bert.encoder", "headed/config.json")
    assert "--map" not in said(spec)


@pytest.mark.long
def test_what_a_spec_moves_goes_where_it_says_and_older_names_are_known_there() -> None:
    bert = model_of(BERT, "BertModel")
    gamma = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in bert.state_dict().items()}
    save_file(gamma, "old.safetensors")
    write_config("headed/config.json", BERT, "BertForSequenceClassification")
    plan = cs.transplant("old.safetensors:encoder:bert.encoder", "headed/config.json")
    loaded = {step.key for step in plan.steps if step.kind == "copied"}
    assert loaded == {key for key in (step.key for step in plan.steps) if key.startswith("bert.encoder.")}
    elsewhere = cs.transplant("old.safetensors:encoder.layer.0:bert.encoder.layer.1", "headed/config.json")
    loaded = {step.key for step in elsewhere.steps if step.kind == "copied"}
    assert loaded
    assert all(key.startswith("bert.encoder.layer.1.") and "LayerNorm.weight" not in key for key in loaded)


def test_what_a_spec_moves_is_converted_first() -> None:
    """Experts are stacked in the whole of a source, then the layer that a spec names is taken."""
    saved("old", MIXTRAL, "MixtralForCausalLM")
    plan = cs.transplant("old/model.safetensors:model.layers.0:model.layers.0", "old/config.json")
    kinds = {step.key: step.kind for step in plan.steps}
    assert all((kind != "initialised") == key.startswith("model.layers.0.") for key, kind in kinds.items())
    assert "derived" in kinds.values()


@pytest.mark.long
def test_a_head_for_another_number_of_labels_needs_a_policy() -> None:
    saved("source", BERT, "BertForSequenceClassification", num_labels=2)
    section("transformers: source, num_labels: 5")
    with pytest.raises(cs.PlanError, match="shape mismatch") as caught:
        cs.transplant("source", "dst.yaml")
    assert "--on-mismatch classifier=init" in caught.value.hint
    cs.apply(cs.transplant("source", "dst.yaml", on_mismatch={"classifier": "init"}), "out")
    model, faults = opened("BertForSequenceClassification", "out")
    assert not faults
    assert model.num_labels == 5


@pytest.mark.long
def test_older_names_are_known_as_transformers_knows_them() -> None:
    source = model_of(WAV2VEC2, "Wav2Vec2ForCTC")
    bert = model_of(BERT, "BertModel")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in source.state_dict().items()
    }
    assert old.keys() != source.state_dict().keys()
    torch.save(old, "w2v.bin")
    gamma = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in bert.state_dict().items()
    }
    torch.save(gamma, "bert.bin")
    write_config("w2v/config.json", WAV2VEC2, "Wav2Vec2ForCTC")
    write_config("bert/config.json", BERT, "BertModel")
    for name, model, rename in (("w2v", source, "weight_g"), ("bert", bert, "LayerNorm.gamma")):
        plan = cs.transplant(f"{name}.bin", f"{name}/config.json")
        assert plan.counts == {"copied": len(model.state_dict())}
        assert rename in said(plan)
        cs.apply(plan, f"{name}-out")
        got, faults = opened(type(model).__name__, f"{name}-out")
        assert not faults
        same(got, model)


MERGED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralForCausalLM", MIXTRAL),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 24, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8,
            "num_experts": 11, "vocab_size": 50,
        },
    ),
    "granitemoe": (  # a transpose-free split of one into two, and another prefix
        "GraniteMoeForCausalLM",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 24, "num_local_experts": 4, "vocab_size": 50,
        },
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("kind", MERGED)
def test_what_was_stored_otherwise_is_converted_as_transformers_does(kind: str) -> None:
    architecture, fields = MERGED[kind]
    model = saved("old", {**fields, "model_type": kind}, architecture)
    old = load_file("old/model.safetensors")
    assert old.keys() != model.state_dict().keys()
    plan = cs.transplant("old", "old/config.json")
    assert not plan.unexpected
    assert plan.counts.get("derived") or kind == "granitemoe"
    assert "transformers" in said(plan)
    assert len(plan.sources[0].operations) < 8  # one for all layers
    cs.apply(plan, "new")
    assert cs.verify("new").ok
    theirs, _ = opened(architecture, "old")
    ours, faults = opened(architecture, "new")
    assert not faults
    same(ours, theirs)
    again = cs.transplant("new", "old/config.json")
    assert set(again.counts) == {"copied"}


def test_a_conversion_that_is_not_known_is_an_error_not_a_drawn_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    import ckptsurgeon.destinations.hf.operations as operations

    saved("old", MIXTRAL, "MixtralForCausalLM")
    known = {name: step for name, step in operations._STEPS.items() if name != "MergeModulelist"}
    monkeypatch.setattr(operations, "_STEPS", known)
    with pytest.raises(
        cs.PlanError, match="ckptsurgeon does not know transformers' operation MergeModulelist"
    ) as caught:
        cs.transplant("old", "old/config.json")
    assert caught.value.exit_code == 4
    plan = cs.transplant("old", "old/config.json", reinit=["**.experts"])
    assert plan.counts["initialised"] == 4


def test_a_source_that_lacks_an_expert_is_an_error() -> None:
    saved("old", MIXTRAL, "MixtralForCausalLM")
    state = load_file("old/model.safetensors")
    save_file({key: value for key, value in state.items() if ".experts.3." not in key}, "less.safetensors")
    with pytest.raises(cs.PlanError, match="lacks the tensor with number 3"):
        cs.transplant("less.safetensors", "old/config.json")


@pytest.mark.long
def test_tokens_move_in_every_tensor_of_the_vocabulary() -> None:
    old = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    new = {token: i for i, token in enumerate(["[PAD]", "[UNK]", *"jihgfeäöü"])}
    saved("old", WAV2VEC2, "Wav2Vec2ForCTC")
    for folder, tokens in (("old", old), ("new", new)):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "vocab.json").write_text(json.dumps(tokens))
    write_config("new/config.json", {**WAV2VEC2, "vocab_size": 11}, "Wav2Vec2ForCTC")
    plan = cs.transplant("old", "new/config.json", vocab="old/vocab.json:new/vocab.json")
    assert plan.counts["mapped"] == 2
    cs.apply(plan, "out")
    model, faults = opened("Wav2Vec2ForCTC", "out")
    assert not faults
    head = load_file("old/model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[new["j"]], head[old["j"]])
    assert json.loads(Path("out/vocab.json").read_text()) == new
