"""Another vocabulary of a model of transformers: its token ids follow their tokens, its tokeniser is the new one's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.transformers_models import BERT, WAV2VEC2, WHISPER, opened, saved, section

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OLD = [*SPECIAL, *(f"w{i}" for i in range(45))]
NEW = ["w5", "w3", "[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]", *(f"n{i}" for i in range(18))]


def tokenizer(folder: str, tokens: list[str], **more: Any) -> None:
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "vocab.txt").write_text("\n".join(tokens) + "\n")
    Path(folder, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **more}))


def bert(**more: Any) -> None:
    saved("bert", BERT, "BertForMaskedLM", cls_token_id=2, sep_token_id=3, eos_token_id=3, **more)
    tokenizer("bert", OLD)


def ids(folder: str) -> dict[str, Any]:
    config = json.loads(Path(folder, "config.json").read_text())
    return {name: value for name, value in config.items() if name.endswith("token_id")}


def told(plan: cs.Plan) -> str:
    return "\n".join(plan.notes)


def test_rows_of_padding_are_no_error_if_no_row_moves() -> None:
    bert(vocab_size=64)  # 50 tokens
    plan = cs.transplant("bert", "bert/config.json", vocab="bert/vocab.txt:bert/vocab.txt")
    cs.apply(plan, "out")
    before, after = (load_file(f"{name}/model.safetensors") for name in ("bert", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], one) for key, one in before.items())
    tokenizer("new", NEW)
    with pytest.raises(cs.PlanError, match="vocab.txt has 25 tokens, but the tensor"):
        cs.transplant("bert", "bert/config.json", vocab="bert/vocab.txt:new/vocab.txt")


EMBEDDING = "bert.embeddings.word_embeddings.weight"


def padded(*more: str, **arguments: Any) -> tuple[cs.Plan, torch.Tensor, torch.Tensor]:
    """A plan from 50 tokens in 64 rows to 25 tokens in 32 rows, and the embeddings before and after."""
    bert(vocab_size=64)
    saved("other", {**BERT, "vocab_size": 32}, "BertForMaskedLM", pad_token_id=4, sep_token_id=2)
    tokenizer("other", NEW)
    arguments = {"vocab": "bert/vocab.txt:other/vocab.txt", **arguments}
    plan = cs.transplant("bert", "other/config.json", **arguments)
    cs.apply(plan, "out")
    assert cs.verify("out").ok
    return plan, *(load_file(f"{name}/model.safetensors")[EMBEDDING] for name in ("bert", "out"))


def test_rows_of_padding_in_both_models_are_no_tokens_and_this_is_said() -> None:
    plan, before, after = padded()
    for place, token in enumerate(NEW[:7]):
        assert torch.equal(after[place], before[OLD.index(token)])
    (step,) = (one for one in plan.steps if one.key == EMBEDDING)
    assert (step.rows.size, step.rows.unlisted, step.rows.padded, len(step.rows.rows)) == (64, 14, 7, 32)
    assert not any((row == after[25:]).all(1).any() for row in before[50:])
    said = (
        f"{EMBEDDING}, cls.predictions.bias: 64 rows in the source, of which the last 14 have no token in "
        "bert/vocab.txt and are not copied; 32 rows in config.json, of which the last 7 have no token in other/vocab.txt "
        "and get the values of new tokens (init)"
    )
    assert said in plan.notes
    Path("p.json").write_text(json.dumps(plan.to_json()))
    cs.apply("p.json", "again")
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_rows_of_padding_are_not_in_the_mean_for_new_tokens() -> None:
    _, before, after = padded(new_tokens="mean")
    assert torch.allclose(after[31], before[:50].mean(0), atol=1e-6)
    assert not torch.allclose(after[31], before.mean(0), atol=1e-6)


def test_no_padding_is_no_note() -> None:
    bert()
    tokenizer("new", NEW)
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    assert "have no token in" not in told(plan)
    assert all(one.rows is None or one.rows == plan.rows for one in plan.steps)


def test_further_rows_that_may_be_of_another_model_are_an_error_until_they_are_named() -> None:
    bert(vocab_size=64)
    tokenizer("new", NEW)
    where, lists = section("transformers: bert, vocab_size: 32"), "bert/vocab.txt:new/vocab.txt"
    with pytest.raises(cs.PlanError, match=r"vocab.txt has 25 tokens, but the tensor .* is \(32, 16\)") as error:
        cs.transplant("bert", where, vocab=lists)
    assert f"If its last 7 rows are padding, name it: --vocab-keys {EMBEDDING}=0. Or give" in error.value.hint
    plan = cs.transplant("bert", where, vocab=lists, vocab_keys=[EMBEDDING, "cls.predictions.bias"])
    assert "32 rows in dst.yaml, of which the last 7 have no token" in told(plan)
    Path("long.txt").write_text("\n".join([*NEW, *(f"z{i}" for i in range(20))]) + "\n")
    with pytest.raises(cs.PlanError, match="long.txt has 45 tokens") as error:
        cs.transplant("bert", where, vocab="bert/vocab.txt:long.txt", vocab_keys=[EMBEDDING])
    assert "padding" not in error.value.hint


def folders(rows: tuple[int, int] = (64, 32), **more: tuple[int, int]) -> None:
    """Two folders with an embedding, a layer and a token list of 50 and 25 tokens; ``more`` has the rows of others."""
    for place, (name, tokens) in enumerate((("one", OLD), ("two", NEW))):
        tokenizer(name, tokens)
        tensors = {"embed_tokens.weight": torch.randn(rows[place], 4), "layers.0.up.weight": torch.randn(8, 4)}
        tensors |= {f"{key}.weight": torch.randn(size[place], 4) for key, size in more.items()}
        save_file(tensors, f"{name}/model.safetensors")


OF_FOLDERS = "one/vocab.txt:two/vocab.txt"


def test_rows_of_padding_go_into_a_folder_of_weights() -> None:
    folders(lm_head=(64, 32))
    plan = cs.transplant("one", "two", vocab=OF_FOLDERS)
    cs.apply(plan, "out")
    before, there, after = (load_file(f"{name}/model.safetensors") for name in ("one", "two", "out"))
    for key in ("embed_tokens.weight", "lm_head.weight"):
        for place, token in enumerate(NEW[:7]):
            assert torch.equal(after[key][place], before[key][OLD.index(token)])
        assert torch.equal(after[key][7:], there[key][7:])
    assert (
        "embed_tokens.weight, lm_head.weight: 64 rows in the source, of which the last 14 have no token in "
        "one/vocab.txt and are not copied; 32 rows in two, of which the last 7 have no token in two/vocab.txt and get "
        "the values of new tokens (init)"
    ) in plan.notes
    assert "keep" not in told(plan)
    assert cs.verify("out").ok


def test_only_a_list_of_the_model_may_be_shorter_than_its_embedding() -> None:
    folders()
    for name in ("one", "two"):
        Path(name, "vocab.txt").rename(f"{name}.txt")
    with pytest.raises(
        cs.PlanError, match=r"one.txt has 50 tokens and two.txt 25, but no tensor changes from 50 to 25"
    ):
        cs.transplant("one", "two", vocab="one.txt:two.txt")
    folders(rows=(64, 20))  # fewer rows than tokens
    with pytest.raises(cs.PlanError, match=r"one/vocab.txt has 50 tokens and two/vocab.txt 25, but no tensor changes"):
        cs.transplant("one", "two", vocab=OF_FOLDERS)


def test_an_output_layer_that_its_name_does_not_show_is_not_left_in_silence() -> None:
    folders(rows=(64, 64), last=(64, 64))
    plan = cs.transplant("one", "two", vocab=OF_FOLDERS)
    said = (
        "1 tensor with as many rows as the embedding, padding included, keeps its order: last.weight; if these are rows"
    )
    assert said in told(plan)
    plan = cs.transplant("one", "two", vocab=OF_FOLDERS, vocab_keys=["embed_tokens.weight", "last.weight=0"])
    assert "keeps its order" not in told(plan)
    folders(last=(64, 32))
    with pytest.raises(cs.PlanError, match="last.weight"):
        cs.transplant("one", "two", vocab=OF_FOLDERS)


def test_lists_of_the_same_file_name_are_told_apart() -> None:
    folders(rows=(50, 25))
    with pytest.raises(cs.PlanError) as error:
        cs.transplant("one", "two", vocab=OF_FOLDERS, vocab_keys=["layers.0.up.weight=0"])
    assert "the vocabulary one/vocab.txt has 50 tokens, but the tensor layers.0.up.weight" in error.value.message
    plan = cs.transplant("one", "two", vocab=OF_FOLDERS)
    (rule,) = {one.rule for one in plan.steps if one.rows}
    assert rule.endswith("--vocab vocab.txt:vocab.txt")  # a plan does not depend on where the lists are


def test_tensors_of_tokens_that_differ_in_rows_are_an_error() -> None:
    torch.save({"in": torch.randn(8, 4), "out": torch.randn(6, 4)}, "a.pth")
    torch.save({"in": torch.randn(8, 4), "out": torch.randn(6, 4)}, "b.pth")
    Path("a.txt").write_text("a\nb\nc\nd\n")
    Path("b.txt").write_text("d\nc\nb\na\n")
    with pytest.raises(cs.PlanError, match="differ in the number of rows: out has 6 in the source and 6 in b.pth, in "):
        cs.transplant("a.pth", "b.pth", vocab="a.txt:b.txt", vocab_keys=["in=0", "out=0"])
    plan = cs.transplant("a.pth", "b.pth", vocab="a.txt:b.txt", vocab_keys=["in=0"])
    cs.apply(plan, "out.pth")
    a, b, out = (torch.load(f"{name}.pth")["in"] for name in ("a", "b", "out"))
    assert torch.equal(out, torch.cat([a[:4].flip(0), b[4:]]))  # a checkpoint keeps its rows of padding


def test_lists_in_the_folders_of_each_other_s_model_are_in_the_wrong_order() -> None:
    bert()
    for name, tokens in (("bert", OLD), ("other", NEW)):
        Path(name).mkdir(exist_ok=True)
        Path(name, "tokens.txt").write_text("\n".join(tokens) + "\n")
    Path("bert/vocab.txt").unlink()
    saved("other", {**BERT, "vocab_size": 25}, "BertForMaskedLM")
    with pytest.raises(
        cs.PlanError,
        match="vocab has bert/tokens.txt as the destination's token list, but this list is in the folder of the source",
    ) as error:
        cs.transplant("bert", "other/config.json", vocab="other/tokens.txt:bert/tokens.txt")
    assert error.value.hint == "Put the source's list first: --vocab bert/tokens.txt:other/tokens.txt."
    cs.transplant("bert", "other/config.json", vocab="bert/tokens.txt:other/tokens.txt")


@pytest.mark.long
def test_the_new_list_s_tokeniser_goes_along_and_ids_follow_their_tokens() -> None:
    bert()
    tokenizer("new", NEW, marked="new")
    Path("bert/generation_config.json").write_text('{"eos_token_id": 3, "suppress_tokens": [7, 8, 30]}')
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    cs.apply(plan, "out")
    assert ids("out") == {
        "bos_token_id": None,
        "cls_token_id": 3,
        "eos_token_id": 2,
        "pad_token_id": 4,
        "sep_token_id": 2,
    }
    assert json.loads(Path("out/generation_config.json").read_text()) == {"eos_token_id": 2, "suppress_tokens": [1]}
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert Path("out", name).read_bytes() == Path("new", name).read_bytes()
    assert "eos_token_id = 2" in told(plan)
    rows = load_file("out/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    source = load_file("bert/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    for place, token in enumerate(NEW[:7]):
        assert torch.equal(rows[place], source[OLD.index(token)])
    model, faults = opened("BertForMaskedLM", "out")
    assert not faults
    assert model.get_input_embeddings().padding_idx == 4
    assert cs.verify("out").ok


def test_the_padding_row_that_is_drawn_is_the_new_one_s_again_from_a_kept_plan() -> None:
    """A network zeroes the row of its padding token: which one is drawn so hangs on the ids that are moved."""
    bert()
    tokenizer("new", ["a", "b", "[PAD]", "[SEP]", "[CLS]", "[UNK]", *(f"n{i}" for i in range(19))])
    arguments: dict[str, Any] = {"vocab": "bert/vocab.txt:new/vocab.txt", "reinit": ["bert.embeddings.word_embeddings"]}
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), **arguments)
    Path("p.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, "out")
    rows = load_file("out/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert [int(place) for place in (rows == 0).all(1).nonzero()] == [2]
    cs.apply("p.json", "again")
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    Path("new/vocab.txt").write_text("\n".join(NEW) + "\n")
    with pytest.raises(cs.PlanError, match=r"vocab\.txt has changed"):
        cs.apply("p.json", "third")


def test_a_list_alone_brings_no_tokeniser_and_it_is_said_what_is_missing() -> None:
    bert()
    Path("alone.txt").write_text("\n".join(NEW) + "\n")
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:alone.txt")
    cs.apply(plan, "out")
    assert set(os.listdir("out")) == {"config.json", "model.safetensors", "ckptsurgeon.json"}
    assert "no tokeniser is copied: there is none next to alone.txt" in told(plan)
    assert "tokenizer_config.json, vocab.txt" in told(plan)


def test_files_that_the_new_tokeniser_lacks_are_named() -> None:
    bert()
    Path("bert/special_tokens_map.json").write_text("{}")
    tokenizer("new", NEW)
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    assert "files left out, because none of them is next to new/vocab.txt: special_tokens_map.json" in told(plan)


@pytest.mark.long
def test_a_fast_tokeniser_of_other_tokens_beside_the_new_list_does_not_go_along() -> None:
    bert()
    tokenizer("new", NEW)
    stale = {"model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(OLD)}}}
    Path("new/tokenizer.json").write_text(json.dumps(stale))
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    assert {one.name for one in plan.target.companions} == {"config.json", "vocab.txt", "tokenizer_config.json"}
    Path("bert/tokenizer.json").write_text(json.dumps(stale))
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    assert (
        "files left out, because the files next to new/vocab.txt have other tokens than this list: tokenizer.json"
        in told(plan)
    )
    assert "no such file is next to" not in told(plan)


def pieces(*texts: str) -> bytes:
    """A sentencepiece model of these pieces: of ModelProto field 1, of a piece field 1 its text."""
    found = [text.encode() for text in texts]
    return b"".join(b"\n" + bytes([len(text) + 2]) + b"\n" + bytes([len(text)]) + text for text in found)


def test_a_plain_list_beside_a_tokeniser_of_its_tokens_is_that_tokeniser_s() -> None:
    bert()
    tokenizer("new", NEW)
    Path("new/tokens.txt").write_text("\n".join(NEW) + "\n")
    where, lists = section("transformers: bert, vocab_size: 25"), "bert/vocab.txt:new/tokens.txt"
    plan = cs.transplant("bert", where, vocab=lists)
    assert {one.name for one in plan.target.companions} == {"config.json", "vocab.txt", "tokenizer_config.json"}
    assert "no tokeniser" not in told(plan)
    tokenizer("new", OLD)
    plan = cs.transplant("bert", where, vocab=lists)
    assert {one.name for one in plan.target.companions} == {"config.json"}
    assert "no tokeniser is copied: the one next to new/tokens.txt has other tokens than this list" in told(plan)


@pytest.mark.long
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
def test_pieces_of_another_tokeniser_do_not_go_along(name: str) -> None:
    bert()
    tokenizer("new", NEW)
    where, lists = section("transformers: bert, vocab_size: 25"), "bert/vocab.txt:new/vocab.txt"
    files = {"config.json", "vocab.txt", "tokenizer_config.json"}
    for texts, goes in (
        (NEW, True),
        ([*NEW[3::-1], *NEW[4:-2]], True),  # others are added beside it, special ones stand elsewhere
        ([*NEW[:4], *NEW[:3:-1]], False),
        (OLD, False),
    ):
        Path("new", name).write_bytes(pieces(*texts))
        plan = cs.transplant("bert", where, vocab=lists)
        assert {one.name for one in plan.target.companions} == (files | {name} if goes else files), texts
    Path("new", name).write_bytes(b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    assert name not in {one.name for one in cs.transplant("bert", where, vocab=lists).target.companions}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ("added_tokens.json", '{"</s>": 7, "<s>": 6}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {"content": "</s>"}, "6": {"content": "<s>"}}}'),
    ],
)
def test_tokens_that_a_tokeniser_added_to_its_list_have_rows_and_ids(beside: str, text: str) -> None:
    words = {"vocab_size": 8, "pad_token_id": 0, "bos_token_id": 6, "eos_token_id": 7}
    saved("speech", {**WAV2VEC2, **words}, "Wav2Vec2ForCTC")
    for folder, tokens in (("speech", "|abcd"), ("new", "dcba|")):
        Path(folder).mkdir(exist_ok=True)
        numbers = {token: i for i, token in enumerate(["<pad>", *tokens])}
        Path(folder, "vocab.json").write_text(json.dumps(numbers))
        Path(folder, beside).write_text(text)
    plan = cs.transplant("speech", section("transformers: speech"), vocab="speech/vocab.json:new/vocab.json")
    assert {one.name for one in plan.target.companions} >= {"vocab.json", beside}
    (rows,) = (step.rows for step in plan.steps if step.key == "lm_head.weight")
    assert rows.rows == (0, 5, 4, 3, 2, 1, 6, 7)


def test_pieces_that_are_not_in_the_order_of_rows_tell_no_ids() -> None:
    bert()
    for name in ("vocab.txt", "tokenizer_config.json"):
        Path("bert", name).unlink()
    Path("bert/sentencepiece.bpe.model").write_bytes(pieces(*OLD))
    with pytest.raises(cs.PlanError, match="does not say which embedding row belongs to which token"):
        cs.merge(["bert", "bert/"], method="linear", vocab="union")


def test_a_destination_whose_own_tokeniser_has_the_new_tokens_keeps_it_and_its_ids() -> None:
    bert()
    saved("other", {**BERT, "vocab_size": 25}, "BertForMaskedLM", pad_token_id=4, sep_token_id=2)
    tokenizer("other", NEW)
    plan = cs.transplant("bert", "other/config.json", vocab="bert/vocab.txt:other/vocab.txt")
    cs.apply(plan, "out")
    assert (ids("out")["pad_token_id"], ids("out")["sep_token_id"]) == (4, 2)
    assert "token ids" not in told(plan)
    assert {"vocab.txt", "tokenizer_config.json"} <= set(os.listdir("out"))


@pytest.mark.long
def test_an_id_without_a_place_is_an_error_with_the_choice_and_both_choices_work() -> None:
    bert()
    tokenizer("new", [token if token != "[SEP]" else "</s>" for token in NEW])
    where, lists = section("transformers: bert, vocab_size: 25"), "bert/vocab.txt:new/vocab.txt"
    with pytest.raises(cs.ConfigError) as error:
        cs.transplant("bert", where, vocab=lists)
    assert error.value.message.startswith("eos_token_id of config.json is 3 ('[SEP]'), which is not in new/vocab.txt")
    assert "--token-map '[SEP]=TOKEN'" in error.value.hint
    assert "eos_token_id: ID, or null" in error.value.hint
    plan = cs.transplant("bert", where, vocab=lists, token_map=["[SEP]=</s>"])
    cs.apply(plan, "mapped")
    assert ids("mapped")["eos_token_id"] == 2
    text = "transformers: bert, vocab_size: 25, eos_token_id: 7, sep_token_id: null"
    cs.apply(cs.transplant("bert", section(text, "set.yaml"), vocab=lists), "set")
    assert (ids("set")["eos_token_id"], ids("set")["sep_token_id"], ids("set")["pad_token_id"]) == (7, None, 4)


def test_what_the_destination_sets_is_so_in_the_generation_configuration_too() -> None:
    bert()
    tokenizer("new", [token if token != "[SEP]" else "</s>" for token in NEW])
    Path("bert/generation_config.json").write_text('{"eos_token_id": 3, "pad_token_id": 0}')
    text = "transformers: bert, vocab_size: 25, eos_token_id: 2, sep_token_id: 2"
    cs.apply(cs.transplant("bert", section(text), vocab="bert/vocab.txt:new/vocab.txt"), "out")
    assert json.loads(Path("out/generation_config.json").read_text()) == {"eos_token_id": 2, "pad_token_id": 4}


def test_ids_of_a_configuration_without_a_list_are_those_of_the_source_s_if_the_size_is() -> None:
    bert()
    Path("lists").mkdir()
    Path("bert/vocab.txt").rename("lists/old.txt")
    Path("bert/tokenizer_config.json").unlink()
    tokenizer("new", NEW)
    cs.apply(
        cs.transplant("bert", section("transformers: bert, vocab_size: 25"), vocab="lists/old.txt:new/vocab.txt"), "out"
    )
    assert ids("out")["pad_token_id"] == 4


def test_ids_that_nothing_tells_the_tokens_of_are_an_error() -> None:
    bert()
    saved("other", {**BERT, "vocab_size": 30}, "BertForMaskedLM", sep_token_id=3)
    tokenizer("new", NEW)
    with pytest.raises(cs.ConfigError, match="it is not known which token has this id") as error:
        cs.transplant("bert", section("transformers: other, vocab_size: 25"), vocab="bert/vocab.txt:new/vocab.txt")
    assert "bert/vocab.txt has 50 tokens, and new/vocab.txt has 25" in error.value.message
    assert "put its tokeniser next to config.json" in error.value.hint


def test_ids_that_fit_both_lists_of_one_length_are_an_error() -> None:
    bert()
    saved("other", BERT, "BertForMaskedLM", sep_token_id=3)
    tokenizer("new", OLD[::-1])
    lists = "bert/vocab.txt:new/vocab.txt"
    with pytest.raises(cs.ConfigError, match="vocabulary size is 50, and both lists have this length") as error:
        cs.transplant("bert", section("transformers: other"), vocab=lists)
    beside = "Put the model's tokeniser next to config.json"
    assert error.value.hint == f"{beside}, or set it in the destination's YAML: {{}}: ID, or null.".format(
        "pad_token_id"
    )
    with pytest.raises(cs.ConfigError, match="vocabulary size is 50, and both lists have this length") as error:
        cs.transplant("bert", "other", vocab=lists, vocab_keys=["**.word_embeddings.weight", "**.predictions.bias"])
    assert error.value.hint == f"{beside}."  # no option sets a field of a folder
    assert cs.transplant("bert", section("transformers: other"), vocab="bert/vocab.txt:bert/vocab.txt")
    tokenizer("other", OLD[::-1])
    cs.apply(cs.transplant("bert", section("transformers: other"), vocab=lists), "out")
    assert ids("out")["sep_token_id"] == 3


def test_a_list_that_contradicts_the_ids_of_a_bare_configuration_is_noted() -> None:
    bert()
    saved("bare", {**BERT, "vocab_size": 25}, "BertForMaskedLM", pad_token_id=4, cls_token_id=3, sep_token_id=2)
    Path("new.txt").write_text("\n".join(NEW) + "\n")
    other = ["w5", "q", "z", "y", "k", "[UNK]", "[MASK]", "[SEP]", "[CLS]", "[PAD]", *(f"m{i}" for i in range(15))]
    Path("other.txt").write_text("\n".join(other) + "\n")
    plan = cs.transplant("bert", "bare/config.json", vocab="bert/vocab.txt:new.txt")
    assert "is it the list of another model?" not in told(plan)
    plan = cs.transplant("bert", "bare/config.json", vocab="bert/vocab.txt:other.txt")
    (note,) = (note for note in plan.notes if note.endswith("is it the list of another model?"))
    assert note.startswith(
        "according to the token list other.txt, ids in config.json of the destination belong to other tokens than"
    )
    assert "pad_token_id is 4 ('k', while '[PAD]' is 9)" in note


def test_lists_whose_lengths_fit_in_the_other_order_only_say_so() -> None:
    bert()
    saved("bare", {**BERT, "vocab_size": 25}, "BertForMaskedLM")
    for name, tokens in (("old.txt", OLD), ("new.txt", NEW)):
        Path(name).write_text("\n".join(tokens) + "\n")
    with pytest.raises(cs.PlanError, match="new.txt has 25 tokens, but the tensor .* is \\(50, 16\\)") as error:
        cs.transplant("bert", "bare/config.json", vocab="new.txt:old.txt")
    assert error.value.hint == "The lists fit in the other order: put the source's list first, old.txt."


def test_the_letters_of_wav2vec2_move_with_their_blank_and_its_files() -> None:
    old = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefg"]
    new = ["a", "|", "x", "<unk>", "<pad>", "b"]
    saved("speech", WAV2VEC2, "Wav2Vec2ForCTC", pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for folder, tokens in (("speech", old), ("new", new)):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    text = "transformers: speech, vocab_size: 6, bos_token_id: null, eos_token_id: null"
    plan = cs.transplant("speech", section(text), vocab="speech/vocab.json:new/vocab.json")
    cs.apply(plan, "out")
    assert ids("out")["pad_token_id"] == 4
    assert json.loads(Path("out/vocab.json").read_text())["x"] == 2
    assert not opened("Wav2Vec2ForCTC", "out")[1]


def test_what_whisper_knows_of_its_tokens_moves() -> None:
    old = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|en|>",
        "<|de|>",
        "<|transcribe|>",
        *(f"t{i}" for i in range(45)),
    ]
    new = ["t1", "t2", "<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|endoftext|>", "t0"]
    fields = {**WHISPER, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    saved(
        "whisper",
        fields,
        "WhisperForConditionalGeneration",
        forced_decoder_ids=[[1, 3], [2, 4]],
        suppress_tokens=[5, 9],
    )
    generation = {
        "eos_token_id": 0, "decoder_start_token_id": 1, "lang_to_id": {"<|en|>": 2, "<|de|>": 3},
        "task_to_id": {"transcribe": 4}, "forced_decoder_ids": [[1, None], [2, 4]], "begin_suppress_tokens": [6, 9],
    }  # fmt: skip
    Path("whisper/generation_config.json").write_text(json.dumps(generation))
    for folder, tokens in (("whisper", old), ("new", new)):
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    plan = cs.transplant(
        "whisper", section("transformers: whisper, vocab_size: 7"), vocab="whisper/vocab.json:new/vocab.json"
    )
    cs.apply(plan, "out")
    config = json.loads(Path("out/config.json").read_text())
    assert (config["eos_token_id"], config["decoder_start_token_id"]) == (5, 2)
    assert json.loads(Path("out/generation_config.json").read_text()) == {
        "eos_token_id": 5, "decoder_start_token_id": 2, "lang_to_id": {"<|de|>": 3}, "task_to_id": {"transcribe": 4},
        "forced_decoder_ids": [[1, None], [2, 4]], "begin_suppress_tokens": [0],
    }  # fmt: skip
    assert "1 of lang_to_id" in told(plan)


def test_fewer_rows_by_place_have_no_tokeniser_of_more_tokens_and_no_id_beyond_them() -> None:
    bert()
    Path("bert/generation_config.json").write_text('{"eos_token_id": 3, "suppress_tokens": [7, 30]}')
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 25"), on_mismatch="slice")
    cs.apply(plan, "out")
    assert "the tokeniser in bert is not copied: it has 50 tokens, but the model has 25 rows" in told(plan)
    assert set(os.listdir("out")) == {"config.json", "generation_config.json", "model.safetensors", "ckptsurgeon.json"}
    assert json.loads(Path("out/generation_config.json").read_text()) == {"eos_token_id": 3, "suppress_tokens": [7]}
    with pytest.raises(cs.ConfigError, match="is not in a vocabulary of 3 rows") as error:
        cs.transplant("bert", section("transformers: bert, vocab_size: 3"), on_mismatch="slice")
    assert "--vocab" in error.value.hint


def test_more_rows_than_tokens_keep_the_tokeniser() -> None:
    bert()
    plan = cs.transplant("bert", section("transformers: bert, vocab_size: 64"), on_mismatch="pad")
    assert {"vocab.txt", "tokenizer_config.json"} <= {one.name for one in plan.target.companions}


def test_ids_that_a_new_configuration_has_from_the_source_are_named() -> None:
    bert()
    tokenizer("new", NEW)
    Path("there").mkdir()
    config = json.loads(Path("bert/config.json").read_text()) | {"vocab_size": len(NEW), "sep_token_id": 2}
    Path("there/config.json").write_text(json.dumps(config))
    plan = cs.transplant("bert", "there/config.json", vocab="bert/vocab.txt:new/vocab.txt")
    (note,) = (note for note in plan.notes if "still has ids of the source's token list" in note)
    assert "cls_token_id (2: '[CLS]' in the old list, '[SEP]' in the new one)" in note
    assert "eos_token_id (3: '[SEP]' in the old list, '[CLS]' in the new one)" in note
    assert "sep_token_id" not in note  # the id of the new list


def test_ids_of_a_new_configuration_that_are_its_own_are_not_named() -> None:
    bert()
    tokenizer("new", NEW)
    Path("there").mkdir()
    own = {"vocab_size": len(NEW), "pad_token_id": 4, "cls_token_id": 3, "sep_token_id": 2, "eos_token_id": 2}
    config = json.loads(Path("bert/config.json").read_text()) | own
    Path("there/config.json").write_text(json.dumps(config))
    plan = cs.transplant("bert", "there/config.json", vocab="bert/vocab.txt:new/vocab.txt")
    assert "still has ids of the source's token list" not in told(plan)
