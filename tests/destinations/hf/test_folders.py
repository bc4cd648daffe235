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
from safetensors.torch import load_file

import ckptsurgeon as cs

from ...helpers.transformers_models import (
    BERT,
    GPT2,
    MIXTRAL,
    T5,
    WAV2VEC2,
    WHISPER,
    opened,
    quiet,
    same,
    saved,
    section,
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
Run = Callable[..., Any]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("architecture", MODELS)
def test_a_folder_opens_with_nothing_missing_unexpected_or_mismatched(architecture: str) -> None:
    source = saved("source", MODELS[architecture], architecture)
    plan = cs.transplant("source", "source/config.json")
    assert not plan.counts.get("initialised")
    receipt = cs.apply(plan, "out")
    assert "config.json" in receipt.beside
    assert cs.verify("out").ok
    model, faults = opened(architecture, "out")
    assert not faults
    same(model, source)


def test_an_output_layer_that_is_tied_and_not_stored_is_not_said_to_be() -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 20,
    }
    saved("source", {"model_type": "xlm-roberta", **sizes}, "XLMRobertaForMaskedLM")
    receipt = cs.apply(cs.transplant("source", "source/config.json"), "out")
    assert "lm_head.decoder.weight" not in cs.inspect("out").tensors
    assert any(note.startswith("not stored, because loaders tie") for note in receipt.notes)
    assert not any("is stored too" in note for note in receipt.notes)


@pytest.mark.costly
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


@pytest.mark.long
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
    with pytest.raises(cs.ConfigError, match="is tied is not stored"):
        cs.Plan.from_json(data)


@pytest.mark.long
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


@pytest.mark.long
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
    assert (done.code, "dst contains no checkpoint" in done.err) == (3, True)
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


@pytest.mark.long
def test_the_page_ends_with_what_transformers_opens(ckpt: Run) -> None:
    page = (Path(__file__).parents[3] / "docs/howto/transformers.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.S)
    quiet()
    exec(first, {})  # noqa: S102 - our own page
    command = re.findall(r"^    \$ ckpt (.* -o start/)$", page, re.M)[0]
    assert ckpt(*shlex.split(command)).code == 0
    exec(second, {})  # noqa: S102
    assert load_file("start/model.safetensors").keys() == load_file("theirs/model.safetensors").keys()


@pytest.mark.long
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
