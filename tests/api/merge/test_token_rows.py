"""Rows of a vocabulary that are chosen token by token, that are no token's, and that a tokeniser has no row for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.vocabulary.beside_model import vocabulary_beside
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary
from fixtures.mergekit_cases import GOLDEN

Run = Callable[..., Any]
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def models() -> None:
    """Copies of the recorded models, which a test may change: those of a, b and base have the same 32 tokens."""
    for name in ("a", "b", "base", "padded", "wide"):
        shutil.copytree(GOLDEN / "models" / name, name)


def recipe(*models: str, tokenizer: Any = None, **fields: Any) -> str:
    """A sum of models in which each counts as much as one of them alone."""
    rows = [{"model": name, "parameters": {"weight": 1.0}} for name in models]
    said = {"merge_method": "linear", "models": rows, "dtype": "float32", "parameters": {"normalize": False}, **fields}
    Path("recipe.yaml").write_text(
        yaml.safe_dump({**said, **({"tokenizer": tokenizer} if tokenizer else {})}, sort_keys=False)
    )
    return "recipe.yaml"


def made(*models: str, output: str = "out", **fields: Any) -> torch.Tensor:
    """The embedding of a merge, whose folder is verified."""
    cs.apply(cs.merge(recipe(*models, **fields)), output, force=True)
    assert cs.verify(output).ok
    return load_file(f"{output}/model.safetensors")[EMBEDDING]


def embedding(name: str, token: str) -> torch.Tensor:
    tokens = read_vocabulary(f"{name}/tokenizer.json").tokens
    return load_file(f"{name}/model.safetensors")[EMBEDDING].float()[tokens.index(token)]


def place(token: str, folder: str = "out") -> int:
    return read_vocabulary(f"{folder}/tokenizer.json").tokens.index(token)


# Rows that are no token's


def pad(name: str, more: int) -> None:
    """Make a model longer than its vocabulary, as people do for tensor cores."""
    state = load_file(f"{name}/model.safetensors")
    for key in (EMBEDDING, "lm_head.weight"):
        state[key] = torch.cat([state[key], torch.full((more, 16), 9.0, dtype=state[key].dtype)])
    save_file(state, f"{name}/model.safetensors", {"format": "pt"})
    config = json.loads(Path(name, "config.json").read_text())
    Path(name, "config.json").write_text(json.dumps({**config, "vocab_size": len(state[EMBEDDING])}))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("vocab", ["union", "base", "list.txt"])
def test_rows_beyond_the_tokens_are_left_out_and_said(vocab: str, ckpt: Run) -> None:
    tokens = read_vocabulary("a/tokenizer.json").tokens
    Path("list.txt").write_text("".join(f"{token}\n" for token in tokens))
    done = ckpt("merge", "padded", "a", "-m", "linear", "--weights", "1,1", "--vocab", vocab, "-o", "out/")
    assert not done.code, done
    assert "7 rows beyond its tokens left out" in " ".join(done.err.split())
    found = load_file("out/model.safetensors")[EMBEDDING].float()
    assert len(found) == 32 + (vocab != "list.txt") == json.loads(Path("out/config.json").read_text())["vocab_size"]
    wanted = (embedding("padded", "x") + embedding("a", "x")) / 2
    assert torch.allclose(found[tokens.index("x")], wanted, rtol=2**-7)
    assert cs.verify("out").ok


def test_models_that_are_padded_alike_are_told_by_the_names_of_their_tensors(ckpt: Run) -> None:
    pad("wide", 6)
    plan = cs.merge(["padded", "wide"], method="linear", weights=[1, 1], vocab="union")
    assert sorted(step.key for step in plan.steps if step.policy == "vocab") == [
        "lm_head.weight",
        "model.embed_tokens.weight",
    ]
    assert {step.shape for step in plan.steps if step.policy == "vocab"} == {(34, 16)}


def test_one_vocabulary_and_several_lengths_is_no_error_with_a_vocabulary(ckpt: Run) -> None:
    pad("b", 3)
    assert ckpt("merge", "a", "b", "-m", "linear", "--weights", "1,1", "-n").code == 4
    assert not ckpt("merge", "a", "b", "-m", "linear", "--weights", "1,1", "--vocab", "base", "-o", "out/").code
    assert load_file("out/model.safetensors")[EMBEDDING].shape == (32, 16)


def test_without_a_configuration_the_tensors_are_named(ckpt: Run) -> None:
    Path("flat").mkdir()
    shutil.copy("padded/model.safetensors", "flat/padded.safetensors")
    shutil.copy("wide/model.safetensors", "flat/wide.safetensors")
    lists = ["--tokens", "flat/padded.safetensors=padded/tokenizer.json"]
    lists += ["--tokens", "flat/wide.safetensors=wide/tokenizer.json", "--vocab", "union"]
    asked = ["merge", "flat/padded.safetensors", "flat/wide.safetensors", "-m", "linear", "--weights", "1,1", *lists]
    done = ckpt(*asked, "-n")
    assert (done.code, "is (40, 16)" in done.err or "bfloat16 (40, 16)" in done.err) == (4, True)
    done = ckpt(*asked, "--vocab-keys", "model.embed_tokens", "-n")
    assert (done.code, "longer than its list, give the axis: --vocab-keys GLOB=AXIS" in " ".join(done.err.split())) == (
        4,
        True,
    )
    done = ckpt(*asked, "--vocab-keys", "model.embed_tokens=0", "--vocab-keys", "lm_head=0", "-o", "out.safetensors")
    assert (done.code, "(7 rows beyond its tokens left out)" in done.err) == (0, True)
    assert load_file("out.safetensors")[EMBEDDING].shape == (34, 16)
    assert cs.verify("out.safetensors").ok


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("source", ["base", "union", "a"])
def test_a_recipe_with_a_tokeniser_cuts_to_its_tokens_and_one_without_keeps_all(source: str) -> None:
    pad("a", 8)
    pad("b", 8)
    assert made("a", "b", tokenizer_source=source).shape == (32, 16)
    assert made("a", "b").shape == (40, 16)
    plan = cs.merge(recipe("a", "b", tokenizer_source=source))
    assert [note for note in plan.notes if "beyond" in note] == [
        f"{name} has 32 of the 32 tokens (8 rows beyond its tokens left out)" for name in "ab"
    ]


@pytest.mark.long
def test_the_rows_that_are_added_are_the_mean_of_the_others() -> None:
    found = made("a", "wide", tokenizer={"source": "union", "pad_to_multiple_of": 64})
    assert found.shape == (64, 16)
    assert torch.allclose(found[34:], found[:34].mean(0).expand(30, 16), atol=1e-6)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 64
    assert made("a", "wide", tokenizer={"source": "union", "pad_to_multiple_of": 17}).shape == (34, 16)


def test_a_plan_with_added_rows_is_the_same_as_json_and_costs_one_more_reading() -> None:
    asked = {"source": "union", "tokens": {"x": {"source": "a", "force": True}}, "pad_to_multiple_of": 64}
    plan = cs.merge(recipe("a", "wide", tokenizer=asked))
    assert cs.Plan.from_json(plan.to_json()) == plan
    assert plan.costs is not None
    assert plan.costs.passes == 2
    for change in ({"padded": 70}, {"padded": 31}, {"padded": -1}, {"lent": [[99, 0]]}, {"lent": [[0, 99]]}):
        data = plan.to_json()
        data["vocabularies"][0].update(change)
        with pytest.raises(cs.ConfigError, match="the plan (is malformed|cannot be read)"):
            cs.Plan.from_json(data)


# Tokens without a row


@pytest.mark.long
def test_a_token_beyond_the_rows_of_its_model_is_one_that_it_lacks() -> None:
    tokens = json.loads(Path("a/tokenizer.json").read_text())
    more = {"id": 32, "content": "<pad>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokens["added_tokens"].append({**more, "normalized": False})
    Path("a/tokenizer.json").write_text(json.dumps(tokens))
    found = made("a", "b", tokenizer_source="base")
    assert found.shape == (33, 16)
    assert not found[32].any()
    plan = cs.merge(recipe("a", "b", tokenizer_source="base"))
    assert "no model that is merged has '<pad>': its row is zero" in plan.notes
    assert "a has 32 of the 33 tokens (1 without a row)" in plan.notes
    with pytest.raises(cs.PlanError, match="have no row for '<pad>'"):
        cs.merge(["a", "b"], method="linear", weights=[1, 1], vocab="base")


def test_a_stack_has_zeros_for_tokens_that_the_model_of_its_embedding_lacks() -> None:
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in ("a", "wide")]
    said = {"merge_method": "passthrough", "slices": slices, "tokenizer_source": "union"}
    Path("recipe.yaml").write_text(yaml.safe_dump(said))
    plan = cs.merge("recipe.yaml")
    assert "no model that is merged has '<|im_end|>', '<|im_start|>': their rows are zero" in plan.notes
    cs.apply(plan, "out")
    found = load_file("out/model.safetensors")
    assert not found[EMBEDDING][place("<|im_end|>")].any()
    assert torch.equal(
        found["lm_head.weight"][place("<|im_end|>")], load_file("wide/model.safetensors")["lm_head.weight"][5]
    )
    assert cs.verify("out").ok


@pytest.mark.long
def test_a_model_without_tokens_has_those_of_the_base() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("b", name).unlink()
    found = made("a", "b", "wide", tokenizer_source="union")
    wanted = sum(embedding(name, "x") for name in ("a", "wide"))
    shutil.copy("a/tokenizer.json", "b/tokenizer.json")
    assert torch.allclose(found[place("x")], wanted + embedding("b", "x"), atol=1e-6)


def test_tokens_that_lie_beside_a_list_belong_to_it() -> None:
    Path("v").mkdir()
    Path("v/vocab.json").write_text(json.dumps({"x": 0, "y": 1}))
    Path("v/added_tokens.json").write_text(json.dumps({"<b>": 3, "<a>": 2, "x": 0}))
    assert vocabulary_beside("v/vocab.json").tokens == ("x", "y", "<a>", "<b>")
    Path("v/added_tokens.json").write_text(json.dumps({"<b>": 7}))
    with pytest.raises(
        cs.ConfigError,
        match="the ids in added_tokens.json do not continue the ids of the vocabulary, which has 2 tokens",
    ):
        vocabulary_beside("v/vocab.json")


# Rows token by token


@pytest.mark.long
def test_a_row_is_of_a_model_of_another_token_of_a_number_or_zero() -> None:
    asked = {
        "source": "base",
        "tokens": {
            "<|im_end|>": {"source": "wide"},
            "<new>": {"source": {"kind": "model_token", "model": "a", "token": "x"}},
            "<other>": {"source": {"kind": "model_token", "model": {"model": {"path": "wide"}}, "token_id": 33}},
            "<none>": {"source": {"kind": "zero"}},
        },
    }
    found = made("a", "wide", tokenizer=asked)
    one, x = embedding("wide", "<|im_end|>"), embedding("a", "x")
    assert torch.allclose(found[place("<|im_end|>")], 2 * one, atol=1e-6)  # lent to a, and wide's own
    assert torch.allclose(found[place("<new>")], 2 * x, atol=1e-6)
    assert torch.allclose(found[place("<other>")], 2 * embedding("wide", "<|im_start|>"), atol=1e-6)
    assert not found[place("<none>")].any()
    assert place("<none>") == 35
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained("out")("a<new>b", add_special_tokens=False).input_ids[1] == place("<new>")


@pytest.mark.costly
@pytest.mark.parametrize("force", [True, False])
def test_a_row_is_forced_on_those_that_have_the_token_too(force: bool) -> None:
    found = made("a", "b", tokenizer={"source": "base", "tokens": {"x": {"source": "a", "force": force}}})
    wanted = 2 * embedding("a", "x") if force else embedding("a", "x") + embedding("b", "x")
    assert torch.allclose(found[place("x")], wanted, atol=1e-6)
    notes = " ".join(cs.merge("recipe.yaml").notes)
    assert ("'x' (of all models)" in notes, "changes nothing, because all models have the token: 'x'" in notes) == (
        force, not force,
    )  # fmt: skip


@pytest.mark.long
def test_the_tokeniser_of_a_model_that_is_not_merged_goes_along_whole(ckpt: Run) -> None:
    Path("wide/tokenizer_config.json").write_text('{"of": "wide"}')
    for more in ({}, {"tokens": {"<new>": {"source": {"kind": "zero"}}}}):
        found = made("a", "b", tokenizer={"source": "wide", **more})
        assert json.loads(Path("out/tokenizer_config.json").read_text()) == {"of": "wide"}
        assert len(read_vocabulary("out/tokenizer.json").tokens) == len(found) == 34 + len(more)
        assert not [note for note in cs.merge("recipe.yaml").notes if "no tokeniser" in note]


BAD: dict[str, tuple[Any, int, str]] = {
    "a list": ({"tokens": ["x"]}, 2, "tokenizer.tokens is ['x'], not a map of tokens"),
    "no map": ({"tokens": {"x": "a"}}, 2, "tokenizer.tokens.x is 'a', not a map. Its fields are source, force."),
    "a number": ({"tokens": {3: {"source": "a"}}}, 2, "tokenizer.tokens.3 is not a string. Write the token in quotes."),
    "an unknown field": ({"tokens": {"x": {"sauce": "a"}}}, 2, "tokenizer.tokens.x has an unknown field 'sauce'. Did you mean source?"),
    "force": ({"tokens": {"x": {"source": "a", "force": "very"}}}, 2, "tokenizer.tokens.x.force is 'very', not true or false"),
    "an unknown kind": ({"tokens": {"x": {"source": {"kind": "one"}}}}, 2, "tokenizer.tokens.x.source.kind is 'one'. Use zero or model_token."),
    "no model": ({"tokens": {"x": {"source": {"kind": "model_token", "token": "y"}}}}, 2, "tokenizer.tokens.x.source has no model"),
    "no token": (
        {"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}, 2,
        "tokenizer.tokens.x.source has neither token nor token_id.",
    ),
    "both tokens": (
        {"tokens": {"x": {"source": {"kind": "model_token", "model": "a", "token": "y", "token_id": 3}}}}, 2,
        "tokenizer.tokens.x.source has both token and token_id.",
    ),
    "a token that is not there": (
        {"tokens": {"<n>": {"source": {"kind": "model_token", "model": "a", "token": "<q>"}}}}, 2,
        "tokenizer.tokens.<n>: the model a has no row for the token '<q>'.",
    ),
    "a model that lacks it": (
        {"tokens": {"<|im_end|>": {"source": "a"}}}, 2,
        "tokenizer.tokens.<|im_end|>: the model a has no row for the token '<|im_end|>'. Take the row of another token: source: {kind: model_token",
    ),
    "a number beyond": (
        {"tokens": {"<n>": {"source": {"kind": "model_token", "model": "a", "token_id": 32}}}}, 2,
        "tokenizer.tokens.<n>.source.token_id is 32, but a has 32 rows. Use 0 to 31.",
    ),
    "a number below": (
        {"tokens": {"<n>": {"source": {"kind": "model_token", "model": "a", "token_id": -1}}}}, 2,
        "tokenizer.tokens.<n>.source.token_id is -1, not the index of a row",
    ),
    "a strange model": ({"tokens": {"<n>": {"source": "b"}}}, 2, "tokenizer.tokens.<n>.source is b, which is not one of the models."),
    "no source": ({"tokens": {"<n>": {"force": True}}}, 2, "the entry tokenizer.tokens.<n> of the recipe has force: true, but no source."),
    "a multiple": ({"pad_to_multiple_of": "64"}, 2, "tokenizer.pad_to_multiple_of is '64', not a number of rows"),
    "a multiple below": ({"pad_to_multiple_of": -8}, 2, "tokenizer.pad_to_multiple_of is -8, not a number of rows"),
    "a strange field": ({"sauce": "base"}, 2, "tokenizer has an unknown field 'sauce'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_rows_is_named_with_its_place(what: str, ckpt: Run) -> None:
    asked, code, why = BAD[what]
    done = ckpt("merge", recipe("a", "wide", tokenizer=asked), "-o", "out")
    assert (done.code, why in " ".join(done.err.split())) == (code, True), done
    assert not os.path.exists("out")


def test_a_vocabulary_beside_rows_of_a_recipe_is_an_error(ckpt: Run) -> None:
    done = ckpt("merge", recipe("a", "wide", tokenizer={"pad_to_multiple_of": 8}), "--vocab", "base", "-n")
    assert (done.code, "--vocab and the field tokenizer of the recipe contradict" in done.err) == (2, True)


def test_a_row_of_a_model_that_a_tensor_is_not_merged_of_is_an_error(ckpt: Run) -> None:
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in ("a", "wide")]
    rows = {"source": "union", "tokens": {"<|im_end|>": {"source": "wide"}}}
    Path("recipe.yaml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices, "tokenizer": rows}))
    done = ckpt("merge", "recipe.yaml", "-n")
    assert done.code == 4
    assert (
        "model.embed_tokens.weight: the row of the token '<|im_end|>' should come from wide, but this tensor is not merged from that "
        in (" ".join(done.err.split()))
    )


@pytest.mark.long
def test_a_base_that_counts_as_a_model_lends_its_rows(ckpt: Run) -> None:
    """Not the mean of all that have the token, which would be another where they are several."""
    tokens = json.loads(Path("a/tokenizer.json").read_text())
    del tokens["model"]["vocab"]["!"]  # the last of 32
    Path("a/tokenizer.json").write_text(json.dumps(tokens))
    fields = {"base_model": "base", "parameters": {"weight": 1.0, "normalize": False}}
    found = made("a", "b", tokenizer_source="base", **fields)
    assert torch.allclose(found[place("!")], 2 * embedding("base", "!") + embedding("b", "!"), atol=1e-6)


def test_what_an_output_carries_is_the_recipe_that_makes_it_again() -> None:
    """Where the models lie under the names that it has for them."""
    shutil.copy(GOLDEN / "yaml" / "token_rows" / "recipe.yml", "recipe.yaml")
    cs.apply(cs.merge("recipe.yaml"), "out")
    carried = json.loads(Path("out/ckptsurgeon.json").read_text())
    Path("again.yaml").write_text(yaml.safe_dump(carried["arguments"]["recipe"], sort_keys=False))
    cs.apply(cs.merge("again.yaml"), "again")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()
