"""Tokens of CTC models, T5 and BERT that have no row, or another than the lines of their list say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary
from tests.destinations.hf.test_vocabularies import pieces

from ..test_model_folders import model

TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|", "a", "b", "c")
NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
HAS = "but lm_head.weight has 8 rows"
SINCE = "since lm_head.weight has 8 rows"


def ctc(path: str, numbers: dict[str, int], names: dict[str, Any], **config: Any) -> str:
    Path(path).mkdir()
    save_file({"lm_head.weight": torch.ones(8, 4), "lm_head.bias": torch.ones(8)}, f"{path}/model.safetensors")
    fields = {"architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2", "hidden_size": 4, "pad_token_id": 0}
    Path(path, "config.json").write_text(json.dumps({**fields, **config}))
    Path(path, "vocab.json").write_text(json.dumps(numbers))
    Path(path, "tokenizer_config.json").write_text(json.dumps(names))
    return path


def numbered(*tokens: str, gap: int = 99) -> dict[str, int]:
    return {token: number + (number >= gap) for number, token in enumerate(tokens)}


@pytest.mark.parametrize(
    ("numbers", "names", "config", "said"),
    [
        (numbered(*TOKENS[:6]), NAMES, {}, f"vocab.json has 6 tokens, {HAS}: 2 rows have no token"),
        (numbered(*TOKENS, "d"), NAMES, {}, f"vocab.json has 9 tokens, {HAS}: the last tokens have no row"),
        (numbered(*TOKENS, gap=6), NAMES, {},
         f"vocab.json skips ids, which leaves 1 token without a row, {SINCE}: 'c' is 8"),
        (numbered(*TOKENS), {**NAMES, "pad_token": "[PAD]"}, {},
         f"tokenizer_config.json lists 1 token that vocab.json lacks, {HAS}: pad_token '[PAD]' is 8, beyond the last row"),
        (numbered(*TOKENS), NAMES, {"vocab_size": 9},
         "config.json says 9 (vocab_size), but lm_head.weight has 8 rows: transformers cannot load this model"),
        (numbered(*TOKENS[1:], "<pad>"), NAMES, {"vocab_size": 8},
         "pad_token_id of config.json, the blank of CTC, is 0 ('<s>'), and pad_token of tokenizer_config.json is "
         "'<pad>' (7)"),
        (numbered(*TOKENS), NAMES, {"vocab_size": 8}, ""),
        (numbered(*TOKENS), {**NAMES, "bos_token": "<bos>"}, {}, ""),  # a CTC model puts out none
        (numbered(*TOKENS[:1], *TOKENS[2:], "d", "<s>"), NAMES, {}, ""),
        (numbered(*TOKENS[:6], gap=4), NAMES, {}, ""),
        ({"eng": 1, "deu": 2}, {}, {}, ""),
    ],
)  # fmt: skip
def test_tokens_of_a_ctc_model_are_held_against_its_output_layer(
    numbers: dict[str, int], names: dict[str, Any], config: dict[str, Any], said: str
) -> None:
    ctc("m", numbers, names, **config)
    for notes in (cs.inspect("m").notes, cs.convert("m").notes):
        assert list(notes) == ([said] if said else [])


@pytest.mark.parametrize(("number", "is_said"), [(2, False), (3, True)])
def test_sentinels_of_t5_beyond_the_rows_are_said(number: int, is_said: bool) -> None:
    names = {"tokenizer_class": "T5Tokenizer", "extra_ids": number}
    ctc("m", {}, names, architectures=["T5Model"], model_type="my_t5", hidden_size=4)
    Path("m/vocab.json").unlink()
    Path("m/spiece.model").write_bytes(pieces("<pad>", "</s>", "<unk>", "a", "b", "c"))
    save_file({"shared.weight": torch.ones(8, 4)}, "m/model.safetensors")
    said = "spiece.model has 9 tokens, but shared.weight has 8 rows: the last tokens have no row"
    assert list(cs.inspect("m").notes) == ([said] if is_said else [])


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n\na\n", ("[PAD]", "[UNK]", "", "a")),
        ("vocab.txt", "[PAD]\n[UNK]\na\n\n", ("[PAD]", "[UNK]", "a")),
        ("vocab.txt", "a\n\nb\n", ("a", "b")),
        ("tokens.txt", "[UNK]\n\nb\n", ("[UNK]", "b")),
    ],
)
def test_an_empty_line_of_berts_list_has_a_row(name: str, text: str, tokens: tuple[str, ...]) -> None:
    Path(name).write_text(text)
    assert read_vocabulary(name).tokens == tokens


@pytest.mark.parametrize(("tokens", "rows", "is_said"), [(5000, 5200, False), (5000, 5208, True)])
def test_one_row_for_25_tokens_may_have_none(tokens: int, rows: int, is_said: bool) -> None:
    model("m", rows=rows, tokens=[f"t{number}" for number in range(tokens)])
    assert any("no token" in one for one in cs.inspect("m").notes) == is_said


@pytest.mark.parametrize(
    ("rows", "is_said"), [(128, False), (136, True), (512, True), (11, True), (10, False), (8, False)]
)
def test_an_embedding_of_many_more_rows_than_tokens_is_said(rows: int, is_said: bool) -> None:
    """As with the tokeniser of another model; models have rows in reserve, but not so many."""
    model("m", rows=rows, tokens=list(TOKENS))
    said = f"vocab.json has 8 tokens, but model.embed_tokens.weight has {rows} rows: {rows - 8} rows have no token"
    assert [one for one in cs.inspect("m").notes if "no token" in one] == ([said] if is_said else [])
    assert any("no token" in one for one in cs.convert("m").notes) == is_said


@pytest.mark.parametrize(("rows", "lack"), [(128, ", 120 of them without a token"), (8, "")])
def test_inspect_gives_the_number_of_tokens_and_of_rows_where_nothing_is_wrong(
    rows: int, lack: str, ckpt: Callable[..., Any]
) -> None:
    """A list of another model may look like a padded one: then only these numbers tell."""
    model("m", rows=rows, tokens=list(TOKENS))
    found = cs.inspect("m")
    assert found.to_json()["tokens"] == {
        "file": "vocab.json", "tokens": 8, "key": "model.embed_tokens.weight", "rows": rows,
    }  # fmt: skip
    said = " ".join(ckpt("inspect", "m").out.split())
    assert f"tokens 8 in vocab.json, {rows} rows in model.embed_tokens.weight{lack} " in said


def test_inspect_gives_no_numbers_of_tokens_without_a_tokeniser_or_for_a_file_of_weights() -> None:
    model("m", rows=8, tokens=list(TOKENS))
    Path("m/model.safetensors").rename("alone.safetensors")
    assert cs.inspect("alone.safetensors").tokens is None
    Path("alone.safetensors").rename("m/model.safetensors")
    Path("m/vocab.json").unlink()
    assert cs.inspect("m").tokens is None


def whole(path: str, numbers: dict[str, int]) -> str:
    Path(path).mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(8, 4)}, f"{path}/model.safetensors")
    Path(path, "config.json").write_text('{"model_type": "llama", "vocab_size": 8, "hidden_size": 4}')
    Path(path, "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": numbers, "merges": []}}))
    return path


def test_ids_that_a_tokenizer_json_skips_are_said() -> None:
    letters = "abcdefgh"
    skips = "tokenizer.json skips ids, which leaves 2 tokens without a row, since model.embed_tokens.weight has 8 rows"
    gap = "tokenizer.json has 8 tokens, but no token with the id 5; the list is not compared with the weights"
    beyond = cs.inspect(whole("beyond", numbered(*letters, gap=5) | {"g": 9})).notes
    assert any(note.startswith((f"{skips}: 'h' is 8", f"{skips}: 'g' is 9")) for note in beyond)
    assert any(note.startswith(gap) for note in beyond)
    assert not any("skips ids" in note for note in cs.inspect(whole("within", numbered(*letters[:6], gap=5))).notes)
    assert not any("no token with" in note for note in cs.inspect(whole("right", numbered(*letters))).notes)
    assert cs.check("beyond").row("vocabulary").status.value == "FAIL"
