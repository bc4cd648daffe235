"""Rows of one vocabulary under the tokens of another: an error with the choice, in every verb that combines models."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_model_folders import TOKENS, model

OTHERS = [*TOKENS[:4], *"wxyz"]
SAID = r"the tokenisers differ \(row 4 is 'w' in b and 'a' in the output\), but rows would be copied by position, not by token: "
LINEAR = {"method": "linear", "weights": [0.5, 0.5]}


def pair(**more: Any) -> list[str]:
    return [model("a"), model("b", tokens=OTHERS, seed=1, **more)]


def only_tokenizer_json(folder: str, tokens: list[str]) -> None:
    words = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens[:-1])}, "merges": []}
    added = [{"id": len(tokens) - 1, "content": tokens[-1]}]
    Path(folder, "vocab.json").unlink()
    Path(folder, "tokenizer.json").write_text(json.dumps({"model": words, "added_tokens": added}))


@pytest.mark.parametrize(
    "method",
    [
        LINEAR,
        {"method": "slerp", "t": 0.5},
        {"method": "ties", "base": "a", "density": 0.5},
        {"method": "task_arithmetic", "base": "a"},
    ],
)
def test_merging_rows_of_other_tokens_is_an_error_with_the_choice(method: dict[str, Any]) -> None:
    pair()
    with pytest.raises(cs.PlanError, match=SAID + r"lm_head\.weight, model\.embed_tokens\.weight") as error:
        cs.merge(["b"] if "base" in method else ["a", "b"], **method)
    assert "--vocab union" in error.value.hint
    assert "--vocab place" in error.value.hint


def test_layers_stacked_under_another_model_s_output_layer_are_one_too() -> None:
    pair()
    Path("r.yaml").write_text(
        "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
        "- sources: [{model: b, layer_range: [1, 3]}]\n"
    )
    with pytest.raises(cs.PlanError, match=SAID + r"lm_head\.weight"):
        cs.merge("r.yaml")


@pytest.mark.long
def test_each_choice_of_a_merge_works() -> None:
    cs.apply(cs.merge(pair(), **LINEAR, vocab="union"), "union")
    assert load_file("union/model.safetensors")["lm_head.weight"].shape[0] == 12
    plan = cs.merge(["a", "b"], **LINEAR, vocab="place")
    assert "rows are copied by position, but row 4 is 'w' in b and 'a' in the output" in plan.notes
    assert plan.arguments["vocab"] == "place"
    cs.apply(plan, "place")
    mean = (load_file("a/model.safetensors")["lm_head.weight"] + load_file("b/model.safetensors")["lm_head.weight"]) / 2
    assert torch.allclose(load_file("place/model.safetensors")["lm_head.weight"], mean)
    assert cs.verify("place").ok


def test_a_recipe_of_mergekit_s_may_say_the_choice() -> None:
    pair()
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
    Path("r.yaml").write_text(text)
    with pytest.raises(cs.PlanError, match=SAID) as error:
        cs.merge("r.yaml")
    assert "tokenizer_source: union" in error.value.hint
    assert any("rows are copied by position" in note for note in cs.merge("r.yaml", vocab="place").notes)
    Path("r.yaml").write_text(f"{text}tokenizer_source: union\n")
    assert next(step.shape for step in cs.merge("r.yaml").steps if step.key == "lm_head.weight") == (12, 4)


def test_a_vocabulary_key_that_was_not_named_is_an_error_too() -> None:
    with pytest.raises(cs.PlanError, match=SAID + "lm_head.weight"):
        cs.merge(pair(), **LINEAR, vocab="base", vocab_keys=["model.embed_tokens=0"])


def test_averaging_rows_of_other_tokens_is_an_error_with_the_choice() -> None:
    with pytest.raises(cs.PlanError, match=SAID) as error:
        cs.average(pair())
    assert "ckpt merge -m linear --vocab union" in error.value.hint
    plan = cs.average(["a", "b"], vocab="place")
    assert "rows are copied by position, but row 4 is 'w' in b and 'a' in the output" in plan.notes
    with pytest.raises(cs.ConfigError, match="row n is always averaged with row n"):
        cs.average(["a", "b"], vocab="union")


@pytest.mark.long
def test_copying_rows_onto_other_tokens_is_an_error_with_the_choice() -> None:
    pair()
    with pytest.raises(cs.PlanError, match=r"\(row 4 is 'a' in a and 'w' in the output\)") as error:
        cs.transplant("a", "b")
    assert "--vocab SRC_TOKENS:DST_TOKENS" in error.value.hint
    cs.transplant("a", "b", exclude=["model.embed_tokens", "lm_head"])
    keys = ["model.embed_tokens=0", "lm_head=0"]
    cs.transplant("a", "b", vocab="a/vocab.json:b/vocab.json", vocab_keys=keys)
    with pytest.raises(cs.PlanError, match=r"rows would be copied by position, not by token: lm_head\.weight"):
        cs.transplant("a", "b", vocab="a/vocab.json:b/vocab.json", vocab_keys=keys[:1])
    plan = cs.transplant("a", "b", vocab="place")
    assert plan.arguments["vocab"] == "place"
    cs.apply(plan, "out")
    assert cs.verify("out").ok
    Path("recipe.yaml").write_text("source: a\ndestination: b\nvocab: place\noutput: again/\n")
    assert cs.load_plan("recipe.yaml").steps == plan.steps


@pytest.mark.long
def test_into_a_configuration_of_transformers_too() -> None:
    pytest.importorskip("transformers")
    from ...destinations.hf.test_vocabularies import OLD, bert, tokenizer
    from ...helpers.transformers_models import BERT, saved

    bert()
    saved("other", BERT, "BertForMaskedLM")
    tokenizer("other", [*OLD[:5], *OLD[:4:-1]])
    with pytest.raises(cs.PlanError, match=r"\(row 5 is 'w0' in bert and 'w44' in the output\)"):
        cs.transplant("bert", "other/config.json")
    cs.transplant("bert", "other/config.json", exclude=["**.word_embeddings", "cls"])
    tokenizer("other", OLD)
    cs.transplant("bert", "other/config.json")


def test_the_same_tokens_in_other_files_are_the_same_tokeniser() -> None:
    model("a")
    model("b", seed=1)
    only_tokenizer_json("b", TOKENS)
    for plan in (cs.merge(["a", "b"], **LINEAR), cs.merge(["b", "a"], **LINEAR), cs.average(["a", "b"])):
        assert not any("by position" in note for note in plan.notes)
    Path("a/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS[:-1])}))
    for text in ('{"added_tokens_decoder": {"7": {"content": "d"}}}', "{}"):  # d is added, or nothing is said of it
        Path("a/tokenizer_config.json").write_text(text)
        cs.merge(["b", "a"], **LINEAR)


SHORTER = {
    "merge": lambda: cs.merge(["few", "all"], **LINEAR),
    "merge on a base": lambda: cs.merge(["all", "more"], method="ties", base="few"),
    "average": lambda: cs.average(["few", "all"]),
    "transplant": lambda: cs.transplant("all", "few"),
    "the other way round": lambda: cs.merge(["all", "few"], **LINEAR),
}


@pytest.mark.parametrize("verb", SHORTER)
def test_a_row_that_is_a_token_s_in_one_model_and_nobody_s_in_another_is_an_error(verb: str) -> None:
    for seed, name in enumerate(("few", "all", "more")):
        model(name, seed=seed)
        only_tokenizer_json(name, TOKENS[: -1 if name == "few" else None])
    with pytest.raises(cs.PlanError, match=r"row 7 is ('d' in \w+ and no token in|no token in few and 'd' in) \w+"):
        SHORTER[verb]()


def test_tokens_that_a_list_without_added_tokens_lacks_are_noted() -> None:
    for name, number in (("few", 7), ("all", 8)):
        model(name, seed=number)
        Path(f"{name}/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS[:number])}))
    for models, short, long in ((["few", "all"], "the output", "all"), (["all", "few"], "few", "the output")):
        (note,) = [note for note in cs.average(models).notes if "by position" in note]
        assert note.endswith(f"{short} has no tokens from row 7 on, but {long} has 'd'")


def test_where_the_output_has_no_tokeniser_those_of_the_models_are_compared() -> None:
    pair()
    model("base", seed=2)
    for name in ("vocab.json", "tokenizer_config.json"):
        os.unlink(f"base/{name}")
    with pytest.raises(cs.PlanError, match=r"\(row 4 is 'w' in b and 'a' in a\)"):
        cs.merge(["a", "b"], method="task_arithmetic", base="base")


def test_a_model_without_a_tokeniser_stays_as_it_is() -> None:
    pair()
    os.unlink("b/vocab.json")
    assert not any("by position" in note for note in cs.average(["a", "b"]).notes)


def test_tokenisers_that_cannot_be_compared_are_said() -> None:
    pair()
    Path("b/vocab.json").write_text('{"a": 0, "b": 2}')
    (note,) = (note for note in cs.average(["a", "b"]).notes if "by position" in note)
    assert note == "rows are copied by position, but the tokenisers of b and the output cannot be compared"


def test_what_is_as_long_and_no_vocabulary_s_does_not_count() -> None:
    pair()
    for name in "ab":
        state = load_file(f"{name}/model.safetensors")
        kept = {key: value for key, value in state.items() if "layers" in key}
        save_file({**kept, "model.embed_positions.weight": torch.ones(8, 4)}, f"{name}/model.safetensors")
    cs.average(["a", "b"])


def adapter(tokens: list[str], saved: tuple[str, ...] = ("model.embed_tokens", "lm_head"), rows: int = 8) -> None:
    """An adapter that brings modules whole, and the tokeniser that trainers write beside one."""
    Path("lora").mkdir()
    prefix = "base_model.model."
    state = {f"{prefix}{key}.weight": torch.randn(rows, 4) for key in saved}
    state |= {f"{prefix}model.layers.0.mlp.lora_{one}.weight": torch.randn(2, 4) for one in "A"}
    state |= {f"{prefix}model.layers.0.mlp.lora_B.weight": torch.randn(4, 2)}
    save_file(state, "lora/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["mlp"]}
    modules = [key.rpartition(".")[2] for key in saved]
    Path("lora/adapter_config.json").write_text(json.dumps({**settings, "modules_to_save": modules}))
    Path("lora/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))


def ids(folder: str) -> tuple[Any, ...]:
    config = json.loads(Path(folder, "config.json").read_text())
    generation = json.loads(Path(folder, "generation_config.json").read_text())
    return config["eos_token_id"], config["pad_token_id"], generation["eos_token_id"]


MOVED = [TOKENS[3], TOKENS[2], *TOKENS[4:], TOKENS[0], TOKENS[1]]


@pytest.mark.costly
@pytest.mark.parametrize("tokens", [MOVED, [*MOVED, "x", "y"]])
def test_an_adapter_s_rows_bring_its_tokeniser_and_its_ids(tokens: list[str]) -> None:
    model("m")
    adapter(tokens, rows=len(tokens))
    cs.apply(cs.lora_merge("m", "lora"), "out")
    assert json.loads(Path("out/vocab.json").read_text())["</s>"] == 1
    assert ids("out") == (1, 6, [1, 2])
    assert cs.verify("out").ok


def test_an_id_without_a_place_in_the_adapter_s_vocabulary_is_an_error() -> None:
    model("m")
    adapter(["x" if token == "</s>" else token for token in MOVED])
    with pytest.raises(cs.ConfigError, match=r"eos_token_id of config\.json is 2 \('</s>'\), which is not in"):
        cs.lora_merge("m", "lora")
    cs.apply(cs.lora_merge("m", "lora", vocab="place"), "out")
    assert ids("out") == (2, 0, [2, 4])
    assert "x" in json.loads(Path("out/vocab.json").read_text())


def test_an_adapter_that_brings_one_side_of_another_vocabulary_is_an_error() -> None:
    model("m")
    adapter(MOVED, ("lm_head",))
    with pytest.raises(cs.PlanError, match=r"row 0 is '<pad>' in m and '<unk>' in the output.*embed_tokens") as error:
        cs.lora_merge("m", "lora")
    assert "--vocab place" in error.value.hint
    cs.lora_merge("m", "lora", vocab="place")
    with pytest.raises(cs.ConfigError, match="row n of the adapter is added to row n of the base"):
        cs.lora_merge("m", "lora", vocab="base")


def test_rows_that_an_adapter_shares_by_weight_are_compared_too() -> None:
    model("m")
    adapter(MOVED)
    with pytest.raises(cs.PlanError, match="row 0 is '<pad>' in m"):
        cs.lora_merge("m", "lora", weights=[0.5])


def test_an_adapter_without_rows_leaves_the_base_s_tokeniser_and_says_so() -> None:
    model("m")
    adapter(MOVED, ())
    plan = cs.lora_merge("m", "lora")
    cs.apply(plan, "out")
    assert Path("out/vocab.json").read_bytes() == Path("m/vocab.json").read_bytes()
    assert any(
        "the tokeniser of lora has other tokens or other ids: perhaps the adapter was" in note for note in plan.notes
    )


def test_lists_named_the_other_way_round_are_an_error_and_another_list_is_said() -> None:
    pair()
    keys = ["model.embed_tokens=0", "lm_head=0"]
    with pytest.raises(
        cs.PlanError,
        match=r"has a/vocab\.json as the destination's token list, but this list is in the folder of the source",
    ) as error:
        cs.transplant("a", "b", vocab="b/vocab.json:a/vocab.json", vocab_keys=keys)
    assert "--vocab a/vocab.json:b/vocab.json" in error.value.hint
    for name in "ab":
        shutil.copy(f"{name}/vocab.json", f"{name}.json")
    with pytest.raises(
        cs.PlanError, match=r"has a\.json as the destination's token list, but this is the token list of the source a"
    ):
        cs.transplant("a", "b", vocab="b.json:a.json", vocab_keys=keys)
    Path("spelled.txt").write_text("\n".join([*TOKENS[:7], "z"]) + "\n")
    plan = cs.transplant("a", "b", vocab="spelled.txt:b/vocab.json", vocab_keys=keys)
    assert "row 7 is 'z' in spelled.txt and 'd' in the tokeniser of a: the list of --vocab is used" in plan.notes


def turned(vocab: str, destination: str = "b") -> str:
    """Return the hint for a source's list that stands second."""
    keys = ["model.embed_tokens*=0", "lm_head*=0"]
    with pytest.raises(cs.PlanError, match="as the destination's token list, but this is the token list") as error:
        cs.transplant("a", destination, vocab=vocab, vocab_keys=keys)
    return error.value.hint


def test_lists_are_to_be_swapped_only_if_the_first_is_the_destination_s() -> None:
    pair()
    for name in "ab":
        shutil.copy(f"{name}/vocab.json", f"{name}.json")
    Path("third.txt").write_text("\n".join([*TOKENS[:7], "z"]) + "\n")
    assert turned("b.json:a.json") == "Put the source's list first: --vocab a.json:b.json."
    assert turned("third.txt:a.json") == (
        "third.txt is not the destination's list either (the tokeniser of b has other tokens than both): give the "
        "destination's list: --vocab a.json:DST_TOKENS."
    )
    assert turned("third.txt:a.json", "a") == "The tokeniser of a has the same tokens: leave --vocab out."
    cs.transplant("a", "b", vocab="a.json:b.json", vocab_keys=["model.embed_tokens*=0", "lm_head*=0"])


def test_without_a_tokeniser_the_rows_of_the_destination_decide() -> None:
    pair()
    shutil.copy("a/vocab.json", "a.json")
    shutil.copy("b/model.safetensors", "b.safetensors")
    Path("third.txt").write_text("\n".join([*TOKENS[:7], "z"]) + "\n")
    assert turned("third.txt:a.json", "b.safetensors") == (
        "If third.txt is the destination's list, put the source's list first: --vocab a.json:third.txt. Else give the "
        "destination's list: --vocab a.json:DST_TOKENS."
    )


@pytest.mark.parametrize(
    ("rows", "hint"),
    [
        (9, "Put the source's list first: --vocab a.json:long.txt."),
        (
            8,
            "long.txt is not the destination's list either (lm_head.weight has 8 rows in b.safetensors, but the list has",
        ),
        (12, "If long.txt is the destination's list, put"),  # further rows may be padding
    ],
)
def test_a_longer_first_list_fits_as_many_rows(rows: int, hint: str) -> None:
    pair()
    shutil.copy("a/vocab.json", "a.json")
    state = load_file("a/model.safetensors")
    names = ("lm_head.weight", "model.embed_tokens.weight")
    for path, size in (("a/model.safetensors", 16), ("b.safetensors", rows)):
        save_file({**state, **{key: torch.ones(size, state[key].shape[1]) for key in names}}, path, {"format": "pt"})
    Path("long.txt").write_text("\n".join([*TOKENS[:7], "y", "z"]) + "\n")
    assert turned("long.txt:a.json", "b.safetensors").startswith(hint)


@pytest.mark.parametrize(
    "made",
    [
        lambda: cs.average(["full", "less"]),
        lambda: cs.merge(["full", "less"], method="linear", weights=[1, 1]),
        lambda: cs.transplant("less", "full"),
    ],
)
def test_rows_that_have_a_token_on_one_side_only_are_said(made: Any) -> None:
    """As many rows, and the vocabulary of one is the beginning of the other's."""
    model("full")
    model("less", seed=1)
    Path("less/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS[:6])}))
    said = "rows are copied by position, but less has no tokens from row 6 on, but the output has 'c'"
    assert [note for note in made().notes if "by position" in note] == [said]


def tekken(tokens: list[str]) -> str:
    rows = [{"rank": i, "token_bytes": b64encode(token.encode()).decode()} for i, token in enumerate(tokens)]
    special = [{"rank": 0, "token_str": "<first>", "is_control": True}]
    config = {"default_vocab_size": len(tokens), "default_num_special_tokens": 1}
    return json.dumps({"config": config, "vocab": rows[::-1], "special_tokens": special})


def ranks(tokens: list[str]) -> str:
    return "".join(f"{b64encode(token.encode()).decode()} {i}\n" for i, token in enumerate(tokens))


def numbers(tokens: list[str]) -> str:
    return json.dumps({token: i for i, token in enumerate(tokens)})


LISTS: dict[str, Callable[[list[str]], str]] = {
    "tekken.json": tekken, "qwen.tiktoken": ranks, "tiktoken.model": ranks, "dict.txt": "\n".join, "spm.model": str,
    "vocab-src.json": numbers, "sentencepiece.model": str, "prophetnet.tokenizer": "\n".join,
}  # fmt: skip
VERBS: dict[str, Callable[[], cs.Plan]] = {
    "average": lambda: cs.average(["a", "b"]),
    "merge": lambda: cs.merge(["b"], method="ties", base="a", density=0.5),
    "transplant": lambda: cs.transplant("b", "a"),
}


def listed(name: str, ours: list[str], theirs: list[str]) -> None:
    pair()
    for folder, tokens in (("a", ours), ("b", theirs)):
        Path(folder, "vocab.json").unlink()
        Path(folder, name).write_text(LISTS[name](tokens))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [*LISTS][:3])
def test_pairs_of_bytes_are_compared(name: str, verb: str) -> None:
    listed(name, TOKENS, OTHERS)
    row = 5 if name == "tekken.json" else 4
    with pytest.raises(cs.PlanError, match=rf"row {row} is 'w' in b and 'a' in the output"):
        VERBS[verb]()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [*LISTS][3:])
def test_lists_that_do_not_say_which_row_a_token_has_are_said_unless_they_are_the_same(name: str, verb: str) -> None:
    listed(name, TOKENS, OTHERS)
    assert (
        "rows are copied by position, but the tokenisers of b and the output cannot be compared" in VERBS[verb]().notes
    )


@pytest.mark.costly
@pytest.mark.parametrize("name", LISTS)
def test_the_same_list_is_no_news_and_another_kind_of_it_is(name: str) -> None:
    listed(name, TOKENS, TOKENS)
    assert not [note for note in cs.average(["a", "b"]).notes if "by position" in note]
    Path("a/vocab.json").touch()
    only_tokenizer_json("a", OTHERS)
    assert [note for note in cs.average(["a", "b"]).notes if "cannot be compared" in note]


@pytest.mark.parametrize(("name", "first"), [("vocab-tgt.json", "vocab-src.json"), ("target_vocab.json", "")])
def test_a_second_list_that_differs_is_said(name: str, first: str) -> None:
    model("a"), model("b", seed=1)
    for folder, tokens in (("a", TOKENS), ("b", OTHERS)):
        Path(folder, first or "vocab.json").write_text(numbers(TOKENS))
        Path(folder, name).write_text(numbers(tokens))
        if first:
            Path(folder, "vocab.json").unlink()
    assert (
        f"rows are copied by position, but {name} of b differs from that of the output" in cs.average(["a", "b"]).notes
    )


def test_rows_under_tekken_lists_are_merged_by_token() -> None:
    listed("tekken.json", TOKENS, [*TOKENS[:4], *"cbad"])
    cs.apply(cs.merge(["a", "b"], **LINEAR, vocab="union"), "union")
    one, two, both = (load_file(f"{path}/model.safetensors")["lm_head.weight"] for path in ("a", "b", "union"))
    assert torch.allclose(both[5], (one[5] + two[7]) / 2)
