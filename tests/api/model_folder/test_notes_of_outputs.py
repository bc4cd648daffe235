"""What is wrong with a source is said of every output that has it: a single file, a folder without config.json, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_model_folders import model as folder
from .weights.test_family_checks import keys, model

GAP = "model.layers has layers up to 4 but lacks 1 layer (the first is 3)"
HOLE = "model.layers.2 lacks mlp.up_proj.weight"
ALONE = "model.layers has layers 0 to 4, but no tensor of layer 3"
LOST = [key for key in keys() if ".3." not in key and key != "model.layers.2.mlp.up_proj.weight"]


@pytest.fixture
def _short() -> None:
    """A Llama of which one shard never came: it has nothing of layer 3, and a part of layer 2."""
    model([*LOST, "head.weight"], model_type="llama", num_hidden_layers=5)


VERBS: dict[str, Callable[[], cs.Plan]] = {
    "convert": lambda: cs.convert("m"),
    "cast": lambda: cs.convert("m", dtype="bf16"),
    "rename": lambda: cs.rename("m", map={"head": "lm_head"}),
    "filter": lambda: cs.filter("m", exclude=["head"]),
    "average": lambda: cs.average(["m", "m"]),
    "merge": lambda: cs.merge(["m", "m"], method="linear", weights=[1, 1]),
    "transplant": lambda: cs.transplant("m", "m"),
}


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("output", ["out.safetensors", "out/"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_lost_shard_is_said_of_every_output(verb: str, output: str) -> None:
    plan = VERBS[verb]()
    notes = [note.removeprefix("m: ") for note in cs.apply(plan, output).notes]
    assert [sum(note.startswith(said) for note in notes) for said in (GAP, HOLE)] == [1, 1]


def test_what_an_output_no_longer_has_is_said_of_its_source() -> None:
    model([key for key in keys() if ".2." not in key], model_type="llama", num_hidden_layers=4)
    for plan in (
        cs.filter("m", exclude=["model.layers.{3,4}"]),
        cs.rename("m", map={"model.layers.3": "model.layers.2"}),
    ):
        (note,) = [note for note in plan.notes if "lacks 1 layer" in note]
        assert note.startswith("m: model.layers has layers up to")


@pytest.mark.usefixtures("_short")
def test_a_folder_without_a_configuration_shows_it_too() -> None:
    cs.apply(cs.rename("m", map={"model.layers": "net.layers"}), "other/")
    said = "net.layers has layers 0 to 4, but no tensor of layer 3"
    assert said in cs.inspect("other").notes
    assert said in cs.apply(cs.convert("other"), "again/").notes
    assert said in cs.inspect("again").notes


@pytest.mark.usefixtures("_short")
def test_a_file_without_a_configuration_shows_that_a_layer_is_missing(ckpt: Any) -> None:
    cs.apply(cs.convert("m"), "one.safetensors")
    verbs = {
        "inspect": cs.inspect("one.safetensors").notes,
        "convert": cs.convert("one.safetensors").notes,
        "average": cs.average(["one.safetensors", "m"]).notes,
        "transplant": cs.transplant("one.safetensors", "m").notes,
    }
    for verb, notes in verbs.items():
        assert sum(ALONE in note for note in notes) == 1, (verb, notes)
    assert ALONE in " ".join(ckpt("inspect", "one.safetensors").err.split())


@pytest.mark.parametrize(
    "found",
    [
        keys(),
        [f"layers.{number}.{leaf}" for number in (0, 2, 4, 6) for leaf in ("weight", "bias")],  # Linear, ReLU, Linear
        [key for key in keys(6) if int(key.split(".")[2]) >= 2],  # the last layers only
        [key for key in keys(3) if ".1." not in key],  # too few
        [f"net.layers.{number}.{name}" for number in (0, 1, 3, 4) for name in (f"a{number}.w", f"b{number}.w")],
    ],
)
def test_numbers_that_are_left_out_for_other_reasons_are_not_said(found: list[str]) -> None:
    save_file({key: torch.ones(1) for key in found}, "m.safetensors")
    assert cs.inspect("m.safetensors").notes == ()


@pytest.mark.long
@pytest.mark.usefixtures("_short")
def test_json_has_the_notes_that_the_terminal_has(ckpt: Any) -> None:
    for command in (
        ["convert", "m"],
        ["average", "m", "m"],
        ["transplant", "m", "m"],
        ["filter", "m", "--include", "**"],
    ):
        shown = ckpt(*command, "-o", "a.safetensors", "--force")
        said = json.loads(ckpt(*command, "-o", "a.safetensors", "--force", "--json").out)["notes"]
        assert any(GAP in note for note in said), command
        text = " ".join((shown.out + shown.err).split())
        for note in said:
            assert text.count(" ".join(note.split())) == 1, (command, note)


def test_the_receipt_has_the_notes_of_its_plan() -> None:
    save_file({"w": torch.ones(2)}, "a.safetensors")
    plan = cs.average(["a.safetensors", "a.safetensors"])
    assert "a.safetensors is given twice, so its weights count twice" in plan.notes
    assert set(plan.notes) <= set(cs.apply(plan, "out.safetensors").notes)


@pytest.mark.costly
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("vocab", ["union", "base"])
def test_a_wrong_token_list_is_said_of_a_merge_by_token_whichever_model_leads(first: bool, vocab: str) -> None:
    for name in ("good", "bad"):
        Path(name).mkdir()
        tensors = {"model.embed_tokens.weight": torch.ones(8, 4), "lm_head.weight": torch.ones(8, 4)}
        save_file(tensors, f"{name}/model.safetensors")
        Path(name, "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
        tokens = [f"{name[0]}{number}" if number > 5 else f"t{number}" for number in range(8)]
        vocabulary = {"type": "WordLevel", "vocab": {token: number for number, token in enumerate(tokens)}}
        Path(name, "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": vocabulary}))
        if name == "bad":
            older = {"x" if number == 3 else token: number for number, token in enumerate(tokens)}
            Path(name, "vocab.json").write_text(json.dumps(older))
    models = ["bad", "good"] if first else ["good", "bad"]
    plan = cs.merge(models, method="linear", weights=[1, 1], vocab=vocab)
    for output in ("out/", "out.safetensors"):
        notes = cs.apply(
            plan if output == "out/" else cs.merge(models, method="linear", weights=[1, 1], vocab=vocab), output
        )
        assert (
            sum("vocab.json and tokenizer.json have different tokens in 1 of 8 rows" in note for note in notes.notes)
            == 1
        ), notes.notes


def test_codes_that_a_declaration_keeps_bring_their_settings_and_what_is_wrong_with_them() -> None:
    Path("q").mkdir()
    codes = {"l.weight": torch.ones(128, 128).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(1, 1)}
    save_file({**codes, "norm.weight": torch.ones(4)}, "q/model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [64, 64]}
    Path("q/config.json").write_text(json.dumps({"quantization_config": settings}))
    save_file({"norm.weight": torch.zeros(4)}, "norm.safetensors")
    cs.init_config("q", output="q.yaml")
    assert yaml.safe_load(Path("q.yaml").read_text())["model"]["values"] == "q"
    plan = cs.transplant("norm.safetensors", "q.yaml")
    assert any("weight_block_size" in note and note.startswith("q: ") for note in plan.notes)
    cs.apply(plan, "out.safetensors")
    assert json.loads(cs.open_checkpoint("out.safetensors").metadata["quantization_config"]) == settings
    assert load_file("out.safetensors")["l.weight"].float().eq(1).all()


@pytest.mark.usefixtures("_short")
def test_verbs_that_write_no_checkpoint_say_it_too(ckpt: Any) -> None:
    cs.apply(cs.convert("m"), "out/")
    for command in (["verify", "out"], ["view", "m", "-o", "a.html"], ["init", "m", "-o", "a.yaml"], ["init", "m"]):
        done = ckpt(*command)
        assert done.code == 0
        assert " ".join((done.out + done.err).split()).count(GAP) == (1 if "-o" in command or "out" in command else 2)
    assert f"# note: {GAP}" in Path("a.yaml").read_text()
    assert any(GAP in note for note in json.loads(ckpt("init", "m", "--json").out)["notes"])
    assert ckpt("verify", "out", "--json").out.count(GAP) == 1
    of_two = cs.view("m", "out", values=False).notes
    assert [sum(note.startswith(f"{name}: {GAP}") for note in of_two) for name in ("m", "out")] == [1, 1]


@pytest.mark.usefixtures("_short")
def test_a_gap_that_a_declaration_took_over_is_said_of_what_is_transplanted_into_it() -> None:
    cs.init_config("m", output="m.yaml")
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4)}, "s.safetensors")
    plan = cs.transplant("s.safetensors", "m.yaml", on_mismatch="init")
    assert sum(ALONE in note for note in plan.notes) == 1
    assert sum(ALONE in note for note in cs.apply(plan, "o/").notes) == 1


@pytest.mark.costly
@pytest.mark.parametrize("embedding", [True, False])
def test_ids_of_other_words_are_said_where_no_configuration_says_what_model_it_is(embedding: bool) -> None:
    folder("m", tokens=["<pad>", "<s>", "</s>", "a", "b"])
    Path("m/config.json").unlink()
    if not embedding:
        save_file({"head": torch.ones(3)}, "m/model.safetensors")
    Path("m/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    Path("m/generation_config.json").write_text(json.dumps({"eos_token_id": 3, "bos_token_id": 900}))
    said = [
        "ids of special tokens that are ordinary words in the tokeniser: "
        "eos_token_id of generation_config.json is 3 ('a'), while eos_token is '</s>' (2)",
        *(["bos_token_id of generation_config.json is 900"] if embedding else []),
    ]
    for notes in (cs.inspect("m").notes, cs.apply(cs.convert("m"), "out/").notes, cs.transplant("m", "m").notes):
        for one in said:
            assert sum(one in note for note in notes) == 1, notes
