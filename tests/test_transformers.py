"""Folders for transformers: what is written opens with from_pretrained, and nothing is missing, left over or otherwise."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .transformers_models import (
    BERT,
    GPT2,
    MIXTRAL,
    T5,
    WAV2VEC2,
    WHISPER,
    model_of,
    opened,
    quiet,
    saved,
    write_config,
)

MODELS = {
    "BertForMaskedLM": BERT,
    "Wav2Vec2ForCTC": WAV2VEC2,
    "WhisperForConditionalGeneration": WHISPER,
    "GPT2LMHeadModel": GPT2,
    "T5ForConditionalGeneration": T5,
    "MixtralForCausalLM": MIXTRAL,
}
ENCODER = {"BertModel": "bert", "GPT2Model": "transformer", "Wav2Vec2Model": "wav2vec2"}

Run = Callable[..., Any]


def said(plan: cs.Plan) -> str:
    return " ".join(plan.notes)


def section(text: str, path: str = "dst.yaml") -> str:
    Path(path).write_text(f"model: {{{text}}}\n")
    return path


def same(model: Any, other: Any, prefix: str = "", theirs: str = "") -> None:
    state = other.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(prefix):
            assert torch.equal(value, state[theirs + key.removeprefix(prefix)]), key


# What is written.


@pytest.mark.parametrize("architecture", MODELS)
def test_a_folder_opens_with_nothing_missing_unexpected_or_mismatched(architecture: str) -> None:
    source = saved("source", MODELS[architecture], architecture)
    plan = cs.transplant("source", "source/config.json")
    assert not plan.counts.get("initialised")
    receipt = cs.apply(plan, "out")
    assert "config.json" in " ".join(receipt.notes)
    assert cs.verify("out").ok
    model, faults = opened(architecture, "out")
    assert not faults
    same(model, source)


@pytest.mark.parametrize("architecture", MODELS)
def test_a_folder_has_the_names_that_save_pretrained_writes_for_ties(architecture: str) -> None:
    model = saved("source", MODELS[architecture], architecture)
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    model.save_pretrained("theirs", save_original_format=False)
    ours, theirs = load_file("out/model.safetensors"), load_file("theirs/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert cs.open_checkpoint("out").metadata["format"] == "pt"
    cs.apply(cs.transplant("source", "source/config.json"), "all.safetensors")
    assert load_file("all.safetensors").keys() == model.state_dict().keys()


def test_the_name_that_is_left_of_a_tie_may_be_a_later_one() -> None:
    saved("source", T5, "T5ForConditionalGeneration")
    plan = cs.transplant("source", "source/config.json")
    data = plan.to_json()
    data["target"]["implied"] = ["shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"]
    Path("p.json").write_text(json.dumps(data))
    cs.apply("p.json", "out")
    assert cs.verify("out", plan="p.json").ok
    left = load_file("out/model.safetensors")
    assert torch.equal(left["decoder.embed_tokens.weight"], load_file("source/model.safetensors")["shared.weight"])
    data["target"]["implied"].append("decoder.embed_tokens.weight")
    with pytest.raises(cs.ConfigError, match="nothing is left to tie"):
        cs.Plan.from_json(data)


def test_shards_and_pickles_are_folders_that_open_too() -> None:
    source = saved("source", BERT, "BertForMaskedLM")
    plan = cs.transplant("source", "source/config.json")
    cs.apply(plan, "shards", max_shard_size="8KB")
    assert len(list(Path("shards").glob("*.safetensors"))) > 1
    cs.apply(cs.transplant("source", "source/config.json"), "bin", to="pth", max_shard_size="5GB")
    for folder in ("shards", "bin"):
        assert cs.verify(folder).ok
        model, faults = opened("BertForMaskedLM", folder)
        assert not faults
        same(model, source)
        again = cs.transplant(folder, "source/config.json")
        assert set(again.counts) == {"copied"}


def test_data_beside_the_configuration_goes_along_and_nothing_else_does() -> None:
    saved("source", BERT, "BertModel")
    for name in ("vocab.txt", "tokenizer.json", "preprocessor_config.json"):
        Path("source", name).write_text(name)
    for name in ("modeling_bert.py", "trainer_state.json", "adapter_config.json", "README.md"):
        Path("source", name).write_text(name)
    plan = cs.transplant("source", section("transformers: source, num_labels: 5"))
    receipt = cs.apply(plan, "out")
    wanted = {"config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt"}
    assert set(os.listdir("out")) == wanted | {"model.safetensors", "ckptsurgeon.json"}
    assert all(name in " ".join(receipt.notes) for name in wanted)
    assert Path("out/vocab.txt").read_text() == "vocab.txt"
    assert len(json.loads(Path("out/config.json").read_text())["id2label"]) == 5
    assert receipt.nbytes_written == sum(file.stat().st_size for file in Path("out").iterdir())
    cs.apply(plan, "one.safetensors")
    assert set(os.listdir()) == {"source", "dst.yaml", "out", "one.safetensors"}
    assert cs.verify("one.safetensors").ok


def test_a_kept_plan_gives_the_same_bytes_and_refuses_a_file_that_changed() -> None:
    saved("source", BERT, "BertModel")
    Path("source/vocab.txt").write_text("a\nb\n")
    plan = cs.transplant("source", section("transformers: source, architecture: BertForSequenceClassification"))
    Path("p.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, "out")
    cs.apply("p.json", "again")
    for file in Path("out").iterdir():
        assert Path("again", file.name).read_bytes() == file.read_bytes(), file
    assert cs.verify("out", plan="p.json").ok
    Path("source/vocab.txt").write_text("b\na\n")
    with pytest.raises(cs.PlanError, match=r"vocab\.txt has changed"):
        cs.apply("p.json", "third")
    assert not Path("third").exists()


@pytest.mark.parametrize("name", ["../vocab.txt", ".vocab", "a/b", ""])
def test_a_plan_with_a_companion_elsewhere_is_refused(name: str) -> None:
    saved("source", BERT, "BertModel")
    data = cs.transplant("source", "source/config.json").to_json()
    data["target"]["companions"][0]["name"] = name
    with pytest.raises(cs.ConfigError, match="no plain file name"):
        cs.Plan.from_json(data)


def test_verify_holds_the_files_beside_the_weights_against_the_recipe() -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    text = Path("out/config.json").read_text()
    Path("out/config.json").write_text(text.replace("16", "32", 1))
    found = cs.verify("out")
    assert [fault.why for fault in found.failed] == ["config.json beside the weights is not as it was written"]
    Path("out/config.json").unlink()
    assert not cs.verify("out").ok


def test_an_existing_folder_needs_force_and_an_input_is_never_written(ckpt: Run) -> None:
    saved("source", BERT, "BertModel")
    shutil.copytree("source", "dst")
    Path("dst/model.safetensors").unlink()
    write_config("there/config.json", BERT)
    Path("there/mine.txt").write_text("mine")
    before = {file: file.read_bytes() for file in Path("there").iterdir()}
    done = ckpt("transplant", "source", "dst/config.json", "-o", "there")
    assert (done.code, "--force" in done.err) == (5, True)
    assert {file: file.read_bytes() for file in Path("there").iterdir()} == before
    for taken in ("dst", "source"):
        done = ckpt("transplant", "source", "dst/config.json", "-o", taken, "--force")
        assert (done.code, "is an input" in done.err) == (5, True)
    assert ckpt("transplant", "source", "dst/config.json", "-o", "there", "--force").code == 0
    assert Path("there/mine.txt").read_text() == "mine"
    assert not opened("BertModel", "there")[1]
    done = ckpt("transplant", "dst", "dst/config.json", "-o", "new")
    assert (done.code, "dst has no checkpoint in it" in done.err) == (3, True)
    done = ckpt("transplant", "source", "dst", "-o", "new")
    assert (done.code, "dst/config.json" in done.err) == (3, True)
    assert not Path("new").exists()


def test_dry_run_shows_what_is_done_and_writes_nothing(ckpt: Run) -> None:
    saved("source", BERT, "BertModel")
    section("transformers: source, architecture: BertForSequenceClassification")
    done = ckpt("transplant", "source", "dst.yaml", "-n", "-v")
    assert done.code == 0
    assert "ran BertForSequenceClassification of transformers" in done.err
    assert "--map '=bert'" in done.err
    assert set(os.listdir()) == {"source", "dst.yaml"}


def test_the_page_ends_with_what_transformers_opens(ckpt: Run) -> None:
    page = (Path(__file__).parent.parent / "docs/howto/transformers.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.S)
    quiet()
    exec(first, {})  # noqa: S102 - our own page
    command = re.findall(r"^    \$ ckpt (.* -o start/)$", page, re.M)[0]
    assert ckpt(*shlex.split(command)).code == 0
    exec(second, {})  # noqa: S102
    assert load_file("start/model.safetensors").keys() == load_file("theirs/model.safetensors").keys()


# The names that a source has.


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
    import ckptsurgeon.configs._hf_operations as operations

    saved("old", MIXTRAL, "MixtralForCausalLM")
    known = {name: step for name, step in operations._STEPS.items() if name != "MergeModulelist"}
    monkeypatch.setattr(operations, "_STEPS", known)
    with pytest.raises(cs.PlanError, match="MergeModulelist of transformers is no operation here") as caught:
        cs.transplant("old", "old/config.json")
    assert caught.value.exit_code == 4
    plan = cs.transplant("old", "old/config.json", reinit=["**.experts"])
    assert plan.counts["initialised"] == 4


def test_a_source_that_lacks_an_expert_is_an_error() -> None:
    saved("old", MIXTRAL, "MixtralForCausalLM")
    state = load_file("old/model.safetensors")
    save_file({key: value for key, value in state.items() if ".experts.3." not in key}, "less.safetensors")
    with pytest.raises(cs.PlanError, match="lacks number 3"):
        cs.transplant("less.safetensors", "old/config.json")


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


# A real network.


def test_minilm_becomes_a_classifier_whose_encoder_gives_what_it_gave(minilm: Path) -> None:
    import transformers

    section(f"transformers: {minilm}, architecture: BertForSequenceClassification, num_labels: 3")
    plan = cs.transplant(minilm, "dst.yaml", require=["bert"])
    assert plan.counts == {"copied": 103, "initialised": 2}
    cs.apply(plan, "out")
    model, faults = opened("BertForSequenceClassification", "out")
    assert not faults
    quiet()
    source = transformers.BertModel.from_pretrained(minilm)
    tokens = torch.arange(1000, 1024).reshape(2, 12)
    with torch.no_grad():
        wanted = source.eval()(tokens)
        found = model.eval().bert(tokens)
    assert torch.equal(wanted.last_hidden_state, found.last_hidden_state)
    assert torch.equal(wanted.pooler_output, found.pooler_output)
    assert (Path("out") / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ["/dev/zero", "../config.json", "..", "a\\0b"])
def test_verify_opens_nothing_but_plain_files_of_the_folder(name: str) -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    recipe = Path("out/ckptsurgeon.json")
    recipe.write_text(recipe.read_text().replace('"name":"config.json"', f'"name":"{name}"'.replace("\\0", "\\u0000")))
    (fault,) = cs.verify("out").failed
    assert fault.why.startswith("its recipe is damaged")
    assert "a companion" in fault.why


def test_verify_waits_for_no_pipe() -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    Path("out/config.json").unlink()
    os.mkfifo("out/config.json")
    (fault,) = cs.verify("out").failed
    assert "config.json beside the weights cannot be read" in fault.why
    assert "not a regular file" in fault.why or "FIFO" in fault.why or "pipe" in fault.why
