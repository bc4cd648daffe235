"""Which rows the pieces of a sentencepiece model have, by the class of the tokeniser that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, PlanError
from ckptsurgeon.vocabulary.beside_model import tokens_beside, vocabulary_beside
from tests.destinations.hf.test_vocabularies import pieces


def test_a_list_at_an_address_is_not_said_to_be_missing() -> None:
    with pytest.raises(ConfigError, match="the token list of hf://org/net is not known") as error:
        tokens_beside("hf://org/net")
    assert error.value.hint == "Give the list with --tokens hf://org/net=LIST."


UNK, T5 = ("<unk>", "<s>", "</s>"), ("<pad>", "</s>", "<unk>")


def folder(name: str, list_name: str, tokens: tuple[str, ...], rows: int, **settings: Any) -> torch.Tensor:
    """A model whose row n holds n, with a list of pieces."""
    Path(name).mkdir(exist_ok=True)
    Path(name, list_name).write_bytes(pieces(*tokens))
    Path(name, "tokenizer_config.json").write_text(json.dumps(settings))
    Path(name, "config.json").write_text(json.dumps({"model_type": "x", "vocab_size": rows}))
    values = torch.arange(rows * 2.0).reshape(rows, 2)
    save_file({"embed_tokens.weight": values}, f"{name}/model.safetensors")
    return values


FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
ORDERS: dict[str, tuple[str, tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "XLM-R": ("sentencepiece.bpe.model", (*UNK, "a", "b"), {"tokenizer_class": "XLMRobertaTokenizerFast"},
              (*FAIRSEQ, "a", "b", "<mask>")),
    "CamemBERT": ("sentencepiece.bpe.model", (*UNK, "a"), {"tokenizer_class": "CamembertTokenizer"},
                  ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "a", "<mask>")),
    "Pegasus": ("spiece.model", (*T5, "a"), {"tokenizer_class": "PegasusTokenizer", "offset": 4},
                ("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_3>", "<unk>", "a")),
    "BigBird-Pegasus": ("spiece.model", (*T5, "a"), {"tokenizer_class": "PegasusTokenizer", "offset": 0}, (*T5, "a")),
    "T5": ("spiece.model", (*T5, "a"), {"tokenizer_class": "T5Tokenizer", "extra_ids": 2},
           (*T5, "a", "<extra_id_1>", "<extra_id_0>")),
    "T5 that lists them": ("spiece.model", (*T5, "a"), {"tokenizer_class": "T5Tokenizer", "added_tokens_decoder": {
        "4": {"content": "<extra_id_1>"}, "5": {"content": "<extra_id_0>"}}},
           (*T5, "a", "<extra_id_1>", "<extra_id_0>")),
    "mT5": ("spiece.model", (*T5, "a"), {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, (*T5, "a")),
    "Llama": ("tokenizer.model", (*UNK, "a"), {"tokenizer_class": "LlamaTokenizer"}, (*UNK, "a")),
}  # fmt: skip


def test_pieces_that_begin_otherwise_than_those_of_their_class_tell_no_rows() -> None:
    folder("a", "sentencepiece.bpe.model", (*FAIRSEQ, "a"), 20, tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(PlanError, match="does not say which embedding row belongs to which token"):
        vocabulary_beside("a/sentencepiece.bpe.model")


@pytest.mark.parametrize("kind", ORDERS)
def test_pieces_have_the_rows_that_the_class_of_the_tokeniser_gives_them(kind: str) -> None:
    name, tokens, settings, expected = ORDERS[kind]
    folder("a", name, tokens, 20, **settings)
    found = vocabulary_beside(f"a/{name}")
    assert (found.tokens, found.is_whole) == (expected, True)


def test_models_of_pieces_are_merged_by_the_rows_that_these_have() -> None:
    settings = {"tokenizer_class": "XLMRobertaTokenizer"}
    for name, words in (("a", "wxyz"), ("b", "zyxw")):
        values = folder(name, "sentencepiece.bpe.model", (*UNK, *words), 9, **settings)
    cs.apply(cs.merge(["a", "b"], method="linear", weights=[0, 1], vocab="base"), "out")
    found = load_file("out/model.safetensors")["embed_tokens.weight"]
    assert found.tolist() == values[[0, 1, 2, 3, 7, 6, 5, 4, 8]].tolist()


def test_what_is_added_to_the_logits_goes_by_token_with_the_embedding() -> None:
    for name, words in (("a", "wxyz"), ("b", "zyxw")):
        values = folder(name, "spiece.model", (*T5, *words), 7, tokenizer_class="T5Tokenizer", extra_ids=0)
        state = {"model.shared.weight": values, "final_logits_bias": values[:, :1].T.contiguous()}
        save_file(state, f"{name}/model.safetensors")
    plan = cs.merge(["a", "b"], method="linear", weights=[0, 1], vocab="base")
    cs.apply(plan, "out")
    assert load_file("out/model.safetensors")["final_logits_bias"].tolist() == [[0, 2, 4, 12, 10, 8, 6]]
    assert not any("keeps its order" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("sentencepiece.bpe.model", {}, "does not say which embedding row belongs to which token"),
        (
            "sentencepiece.bpe.model",
            {"tokenizer_class": "MBartTokenizer"},
            "does not say which embedding row belongs to which token",
        ),
        ("spiece.model", {"tokenizer_class": "NewTokenizer"}, "2 rows of a are beyond the 5 tokens"),
        ("vocab.json", {"tokenizer_class": "M2M100Tokenizer"}, "2 rows of a are beyond the 5 tokens"),
        ("tokenizer.model", {"tokenizer_class": "LlamaTokenizer"}, ""),
    ],
)
def test_rows_that_may_be_those_of_tokens_in_no_list_are_an_error(name: str, settings: Any, said: str) -> None:
    for one, words in (("a", "wx"), ("b", "xw")):
        folder(one, name, (*UNK, *words), 7, **settings)
        if name == "vocab.json":
            Path(one, name).write_text(json.dumps({token: row for row, token in enumerate((*UNK, *words))}))
    if not said:
        plan = cs.merge(["a", "b"], method="linear", weights=[0, 1], vocab="base")
        assert "2 rows beyond its tokens left out" in "\n".join(plan.notes)
        return
    with pytest.raises(PlanError, match=said) as error:
        cs.merge(["a", "b"], method="linear", weights=[0, 1], vocab="base")
    assert error.value.exit_code == 4
    assert "tokenizer.json" in error.value.hint
