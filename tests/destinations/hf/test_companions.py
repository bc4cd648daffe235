"""What lies beside the weights in a folder for transformers: written, recorded and verified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.transformers_models import BERT, GPT2, opened, saved, section, write_config


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
    assert {*receipt.beside} == wanted
    assert Path("out/vocab.txt").read_text() == "vocab.txt"
    assert len(json.loads(Path("out/config.json").read_text())["id2label"]) == 5
    assert receipt.nbytes_written == sum(file.stat().st_size for file in Path("out").iterdir())
    cs.apply(plan, "one.safetensors")
    assert set(os.listdir()) == {"source", "dst.yaml", "out", "one.safetensors"}
    assert cs.verify("one.safetensors").ok


@pytest.mark.long
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


@pytest.mark.costly
@pytest.mark.parametrize("name", ["../vocab.txt", ".vocab", "a/b/c", ""])
def test_a_plan_with_a_companion_elsewhere_is_refused(name: str) -> None:
    saved("source", BERT, "BertModel")
    data = cs.transplant("source", "source/config.json").to_json()
    data["target"]["companions"][0]["name"] = name
    with pytest.raises(cs.ConfigError, match="is not a plain file name"):
        cs.Plan.from_json(data)


def test_verify_holds_the_files_beside_the_weights_against_the_recipe() -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    text = Path("out/config.json").read_text()
    Path("out/config.json").write_text(text.replace("16", "32", 1))
    found = cs.verify("out")
    assert [fault.why for fault in found.failed] == ["config.json next to the weights has changed since it was written"]
    Path("out/config.json").unlink()
    assert not cs.verify("out").ok


@pytest.mark.parametrize("name", ["/dev/zero", "../config.json", "..", "a\\0b"])
def test_verify_opens_nothing_but_plain_files_of_the_folder(name: str) -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    recipe = Path("out/ckptsurgeon.json")
    recipe.write_text(recipe.read_text().replace('"name":"config.json"', f'"name":"{name}"'.replace("\\0", "\\u0000")))
    (fault,) = cs.verify("out").failed
    assert fault.why.startswith("the recipe of the output is damaged")
    assert "is not a valid file name: it must be in the output's folder" in fault.why


def test_verify_waits_for_no_pipe() -> None:
    saved("source", BERT, "BertModel")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    Path("out/config.json").unlink()
    os.mkfifo("out/config.json")
    (fault,) = cs.verify("out").failed
    assert "config.json next to the weights cannot be read" in fault.why
    assert "not a regular file" in fault.why or "FIFO" in fault.why or "pipe" in fault.why


@pytest.mark.costly
@pytest.mark.parametrize("order", ["num_labels: 3, id2label: {0: a, 1: b}", "id2label: {0: a, 1: b}, num_labels: 3"])
def test_labels_of_another_number_than_is_said_are_an_error(order: str) -> None:
    saved("source", BERT, "BertForSequenceClassification")
    with pytest.raises(cs.ConfigError, match="num_labels is 3, but id2label has 2 labels"):
        cs.transplant("source", section(f"transformers: source, {order}"))
    cs.apply(cs.transplant("source", section("transformers: source, num_labels: 2, id2label: {0: a, 1: b}")), "out")
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {"0": "a", "1": "b"}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("source", "dtype"), [("float32", "bf16"), ("bfloat16", "keep")])
def test_a_folder_opens_in_the_dtype_that_its_weights_have(source: str, dtype: str) -> None:
    saved("source", BERT, "BertModel", dtype=source)
    plan = cs.transplant("source", section("transformers: source, dtype: float32"), dtype=dtype)
    cs.apply(plan, "out")
    assert {step.dtype for step in plan.steps} == {"bfloat16"}
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    model, faults = opened("BertModel", "out")
    assert not faults
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    Path("p.json").write_text(json.dumps(plan.to_json()))
    assert cs.verify("out", plan="p.json").ok


def test_a_configuration_stays_where_its_weights_have_several_dtypes_and_a_note_says_so() -> None:
    saved("source", BERT, "BertModel", dtype="bfloat16")
    target = section("transformers: source, dtype: float32")
    plan = cs.transplant("source", target, dtype="keep", exclude="pooler")
    assert "config.json says float32" in " ".join(plan.notes)
    assert "bfloat16 and float32" in " ".join(plan.notes)
    cs.apply(plan, "out")
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "float32"


@pytest.mark.long
def test_force_removes_what_the_former_output_had_beside_its_weights_and_nothing_else() -> None:
    saved("source", BERT, "BertModel")
    for name in ("vocab.txt", "merges.txt", "tokenizer.json"):
        Path("source", name).write_text(name)
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    Path("out/README.md").write_text("mine")
    Path("out/merges.txt").write_text("edited")
    Path("out/spiece.model").write_text("mine")
    saved("other", BERT, "BertModel")
    Path("other/tokenizer.json").write_text("another")
    plan = cs.transplant("other", "other/config.json")
    with pytest.raises(cs.OutputError, match="holds a checkpoint"):
        cs.apply(plan, "out")
    assert Path("out/vocab.txt").read_text() == "vocab.txt"
    receipt = cs.apply(plan, "out", force=True)
    ours = {"config.json", "tokenizer.json", "model.safetensors", "ckptsurgeon.json"}
    assert set(os.listdir("out")) == ours | {"README.md", "merges.txt", "spiece.model"}
    assert Path("out/tokenizer.json").read_text() == "another"
    assert "files of the earlier output that are removed: vocab.txt" in receipt.notes
    assert "files of the earlier output that are kept, because they were changed since: merges.txt" in receipt.notes
    assert cs.verify("out").ok


def test_force_removes_nothing_on_the_word_of_a_damaged_recipe() -> None:
    saved("source", BERT, "BertModel")
    Path("source/vocab.txt").write_text("vocab.txt")
    cs.apply(cs.transplant("source", "source/config.json"), "out")
    Path("out/ckptsurgeon.json").write_text("{}")
    Path("source/vocab.txt").unlink()
    cs.apply(cs.transplant("source", "source/config.json"), "out", force=True)
    assert Path("out/vocab.txt").exists()


GENERATION = {
    "suppress_tokens": [5, 6],
    "repetition_penalty": 1.3,
    "max_length": 50,
    "num_beams": 4,
    "my_field": {"a": 1},
}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("target", "changed"),
    [
        ("dst/config.json", {}),
        ("transformers: dst", {}),
        ("transformers: dst, max_length: 9, n_inner: 64", {"max_length": 9, "n_inner": 64}),
        ("transformers: dst, torch_dtype: float16", {"dtype": "float16"}),
        ("transformers: dst, num_labels: 2", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}),
    ],
)
def test_a_configuration_keeps_what_the_given_one_says(target: str, changed: dict[str, Any]) -> None:
    saved("source", GPT2, "GPT2LMHeadModel")
    given = {**GPT2, "torch_dtype": "float32", "transformers_version": "4.0.0", **GENERATION}
    write_config("dst/config.json", given, "GPT2LMHeadModel")
    cs.apply(cs.transplant("source", section(target) if ":" in target else target, on_mismatch="init"), "out")
    written = json.loads(Path("out/config.json").read_text())
    wanted = {**json.loads(Path("dst/config.json").read_text()), **changed}
    if "dtype" in changed:
        del wanted["torch_dtype"]
    written.pop("label2id", None)
    assert written == wanted


def test_ids_that_only_the_file_has_follow_their_tokens() -> None:
    saved("source", GPT2, "GPT2LMHeadModel")
    write_config("dst/config.json", {**GPT2, **GENERATION}, "GPT2LMHeadModel")
    for name, by in (("dst/vocab.json", 0), ("new.json", 1)):
        Path(name).write_text(json.dumps({f"t{number}": (number - by) % 50 for number in range(50)}))
    cs.apply(cs.transplant("source", "dst/config.json", vocab="dst/vocab.json:new.json"), "out")
    written = json.loads(Path("out/config.json").read_text())
    wanted = {"suppress_tokens": [4, 5], "eos_token_id": 0, "repetition_penalty": 1.3}
    assert {name: written.get(name) for name in wanted} == wanted


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("generation_config.json", {"eos_token_id": 400}, "eos_token_id of generation_config.json is 400"),
        ("config.json", {**GPT2, "eos_token_id": 400}, "eos_token_id of config.json is 400"),
        ("vocab.json", {f"t{number}": number for number in range(60)}, "vocab.json has 60 tokens"),
        ("added_tokens.json", {"<x>": 900}, "added_tokens.json adds 1 token without a row"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<x>"}}}, "<x> is 900"),
        ("generation_config.json", {"eos_token_id": 1}, ""),
        ("vocab.json", {f"t{number}": number for number in range(50)}, ""),
    ],
)
def test_what_contradicts_the_weights_is_said_of_a_configuration_as_of_its_folder(
    name: str, content: dict[str, Any], note: str
) -> None:
    saved("dst", GPT2, "GPT2LMHeadModel")
    Path("dst/generation_config.json").unlink()
    Path("dst", name).write_text(
        json.dumps({**json.loads(Path("dst/config.json").read_text()), **content} if name == "config.json" else content)
    )
    said = {
        target: [one for one in cs.transplant("dst/model.safetensors", target).notes if not one.startswith("ran ")]
        for target in ("dst", "dst/config.json")
    }
    assert said["dst/config.json"] == said["dst"]
    assert [note in one for one in said["dst"]] == ([True] if note else [])


@pytest.mark.costly
@pytest.mark.parametrize("output", ["old", "old/model.safetensors"])
def test_files_of_a_model_that_stay_where_another_is_written_are_said_with_what_they_contradict(output: str) -> None:
    saved("old", BERT, "BertModel")
    Path("old/vocab.txt").write_text("\n".join(f"w{number}" for number in range(99)))
    saved("new", {**BERT, "vocab_size": 20}, "BertModel")
    plan = cs.convert("new")
    notes = cs.apply(plan, output, force=True).notes
    stay = "vocab.txt" if output == "old" else "config.json, vocab.txt"
    assert f"old still has files of an earlier model: {stay}" in notes
    assert any("vocab.txt has 99 tokens" in note and "20 rows" in note for note in notes)
    said = any("config.json says 50 (vocab_size)" in note for note in notes)
    assert said == (output != "old")
    assert not any("still has" in note for note in cs.apply(plan, "fresh").notes)
    assert not any("still has" in note for note in cs.apply(plan, "new.safetensors").notes)


@pytest.mark.costly
@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.bin", "modeling_x.py", "consolidated.safetensors"]
)
def test_any_file_that_stays_in_the_folder_of_an_output_is_said(name: str) -> None:
    """transformers applies an adapter, and other programs read other weights, of the folder of a model."""
    saved("new", BERT, "BertModel")
    plan = cs.convert("new")
    cs.apply(plan, "out")
    assert not any("still has" in note for note in cs.apply(plan, "out", force=True).notes)
    Path("out", name).write_text("{}")
    Path("out/README.md").write_text("# A model\n")
    Path("out/runs").mkdir()
    left = f"out still has other files from before this run: README.md, {name}"
    assert left in cs.apply(plan, "out", force=True).notes


def test_the_card_and_the_terms_of_an_earlier_model_in_the_folder_are_said() -> None:
    saved("old", BERT, "BertModel")
    saved("new", BERT, "BertModel")
    plan = cs.convert("new")
    Path("old/README.md").write_text("# Old\n")
    Path("old/LICENSE").write_text("terms")
    notes = cs.apply(plan, "old", force=True).notes
    assert "old still has files of an earlier model: LICENSE" in notes
    assert "old still has other files from before this run: README.md" in notes
    Path("new/LICENSE").write_text("terms")
    Path("old/README.md").unlink()
    assert not any("still has" in note for note in cs.apply(cs.convert("new"), "old", force=True).notes)


@pytest.mark.long
def test_a_patch_names_the_files_of_an_earlier_model_in_the_folder() -> None:
    for one in ("a", "b", "old"):
        saved(one, BERT, "BertModel")
    cs.make_patch("a", "b", "b.ckptpatch")
    notes = cs.apply_patch("a", "b.ckptpatch", "old", force=True).notes
    assert not any("still has" in note for note in notes)
    Path("old/vocab.txt").write_text("a\nb\n")
    Path("old/README.md").write_text("# Old\n")
    notes = cs.apply_patch("a", "b.ckptpatch", "old", force=True).notes
    assert "old still has files of an earlier model: vocab.txt" in notes
    assert "old still has other files from before this run: README.md" in notes


def test_the_index_of_a_model_that_stays_beside_a_single_file_is_said() -> None:
    saved("old", BERT, "BertModel")
    saved("new", BERT, "BertModel")
    cs.apply(cs.convert("old"), "sharded", max_shard_size="3KB")
    notes = cs.apply(cs.convert("new"), "sharded/model.safetensors").notes
    assert any(
        note.startswith("sharded still has model.safetensors.index.json and its shards, from an earlier model")
        for note in notes
    )
    assert not any("still has" in note for note in cs.apply(cs.convert("new"), "sharded/other.safetensors").notes)
    for shard in Path("sharded").glob("model-*-of-*.safetensors"):
        shard.unlink()
    notes = cs.apply(cs.convert("new"), "sharded/model.safetensors", force=True).notes
    said = "sharded still has model.safetensors.index.json, from an earlier model; remove it, or load"
    assert any(note.startswith(said) for note in notes), notes


@pytest.mark.costly
@pytest.mark.parametrize("name", ["plan.json", "recipe.yaml"])
def test_the_notes_of_a_plan_are_those_of_its_file_when_it_is_applied(name: str, ckpt: Any) -> None:
    saved("new", {**BERT, "vocab_size": 20}, "BertModel")
    config = json.loads(Path("new/config.json").read_text())
    Path("new/config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    plan = cs.convert("new")
    (said,) = [note for note in plan.notes if "config.json says 50 (vocab_size)" in note]
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    Path("recipe.yaml").write_text("verb: convert\nsource: new\noutput: out/\n")
    assert said in cs.apply(name, "there/").notes
    assert said in " ".join((lambda done: done.out + done.err)(ckpt("apply", name, "-o", "here/")).split())


@pytest.mark.long
def test_an_output_that_has_no_model_around_it_is_not_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    saved("new", BERT, "BertModel")
    Path("vocab.json").write_text("{}")
    monkeypatch.setattr("ckptsurgeon.api.model_folder.earlier_files.open_checkpoint", None)
    for output, options in (("one.safetensors", {}), ("shards", {"max_shard_size": "3KB"}), ("new2", {})):
        cs.apply(cs.convert("new"), output, **options)
    with pytest.raises(TypeError):
        cs.apply(cs.convert("new"), "model.safetensors")


def test_the_same_files_of_a_model_around_an_output_are_not_said() -> None:
    saved("old", BERT, "BertModel")
    saved("tuned", BERT, "BertModel")
    notes = cs.apply(cs.convert("tuned"), "old/model.safetensors", force=True).notes
    assert not any("still has" in note for note in notes)


def test_settings_in_the_metadata_of_codes_are_not_those_of_a_config_json_that_has_none() -> None:
    codes = {"layers.0.up_proj.qweight": torch.zeros(8, 64, dtype=torch.int32),
             "layers.0.up_proj.qzeros": torch.zeros(1, 8, dtype=torch.int32),
             "layers.0.up_proj.scales": torch.ones(1, 64).half()}  # fmt: skip
    saved("old", BERT, "BertModel")
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    save_file(codes, "old/model.safetensors", {"quantization_config": json.dumps(settings)})
    said = "old: its config.json has no quantization_config for 1 quantised tensor"
    assert any(note.startswith(said) for note in cs.inspect("old").notes)
