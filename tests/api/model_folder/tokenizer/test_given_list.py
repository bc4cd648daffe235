"""A token list given for a model without a tokeniser: the ids in config.json say whether it is another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model

KEYS = ["lm_head", "model.embed_tokens"]
LETTERS = [*"|abcdefgh'"]
CTC = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcd"]
LLAMA = ["<unk>", "<s>", "</s>", "!", '"', "#", "a", "b", "<pad>"]
BYTES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(16))]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OF_CTC = {"architectures": ["Wav2Vec2ForCTC"], **IDS}
OF_BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    **IDS,
    "bos_token_id": None,
    "eos_token_id": None,
}
OF_LLAMA = {"architectures": ["LlamaForCausalLM"], **IDS, "pad_token_id": None}
OF_OTHER = "belong to other tokens than their fields say"


def bare(path: str, rows: int, **config: Any) -> None:
    model(path, rows=rows, **config)
    for name in ("vocab.json", "tokenizer_config.json", "generation_config.json"):
        Path(path, name).unlink()


def a_list(path: str, tokens: list[str]) -> str:
    Path(path).write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    return path


def rolled(tokens: list[str], by: int) -> list[str]:
    return [*tokens[by:], *tokens[:by]]


def notes(tokens: list[str], config: dict[str, Any], generation: dict[str, Any] | None = None) -> list[str]:
    bare("m", len(tokens), **config)
    if generation is not None:
        Path("m/generation_config.json").write_text(json.dumps(generation))
    model("new", tokens=[*CTC, "x", "y"])
    lists = (a_list("old.json", tokens), "new/vocab.json")
    plan = cs.transplant("m", "new", vocab=lists, vocab_keys=KEYS)
    return [one for one in plan.notes if "according to" in one]


@pytest.mark.parametrize(
    ("tokens", "config", "said"),
    [
        (rolled(CTC, 1), OF_CTC, "pad_token_id is 0 ('<s>', while '<pad>' is 13)"),
        (rolled(CTC, 2), OF_CTC, "pad_token_id is 0 ('</s>', while '<pad>' is 12)"),
        (rolled(CTC, 4), OF_CTC, "pad_token_id is 0 ('|', while '<pad>' is 10)"),
        ([*LETTERS, "[UNK]", "[PAD]"], OF_CTC, "pad_token_id is 0 ('|', while '[PAD]' is 11)"),
        ([*"бвг", "a", "<blank>"], OF_CTC, "pad_token_id is 0 ('б', while '<blank>' is 4)"),
        (rolled(BERT, 5), OF_BERT, "pad_token_id is 0 ('a', while '[PAD]' is 4)"),
        (rolled(BERT, 1), OF_BERT, "pad_token_id is 0 ('[UNK]', while '[PAD]' is 8)"),
        (rolled(BERT, 3), OF_BERT, "pad_token_id is 0 ('[SEP]', while '[PAD]' is 6)"),
        (rolled(LLAMA, 3), OF_LLAMA,
         "eos_token_id is 2 ('#', while '</s>' is 8), bos_token_id is 1 ('\"', while '<s>' is 7)"),
        (rolled(BYTES, 3), OF_LLAMA,
         "eos_token_id is 2 ('<0x02>', while '</s>' is 18), bos_token_id is 1 ('<0x01>', while '<s>' is 17)"),
        (rolled(LLAMA, 3), {**OF_LLAMA, "bos_token_id": None, "eos_token_id": [1, 2]},
         "eos_token_id is 1 and 2 ('\"' and '#', while '</s>' is 8)"),
        (["<pad>", "a", "b", "</s>", "c"],
         {"model_type": "bart", "pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 1,
          "architectures": ["BartForConditionalGeneration"]},
         "decoder_start_token_id is 1 ('a', while '<pad>' is 0)"),
    ],
)  # fmt: skip
def test_a_list_that_the_ids_of_the_model_contradict_is_said(
    tokens: list[str], config: dict[str, Any], said: str
) -> None:
    ids = f"according to the token list old.json, ids in config.json of m {OF_OTHER}"
    assert notes(tokens, config) == [f"{ids}: {said}: is it the list of another model?"]


@pytest.mark.parametrize(
    ("tokens", "config"),
    [
        (CTC, OF_CTC),
        (["<blank>", *LETTERS, "<pad>"], OF_CTC),  # a blank of another toolkit
        (["[PAD]", *LETTERS, "<s>", "</s>"], OF_CTC),  # a CTC model uses neither bos nor eos: defaults of its class
        ([*LETTERS, "<s>", "</s>"], OF_CTC),  # no padding token at all
        (BERT, OF_BERT),
        (["<s>", "<pad>", "</s>", "<unk>", "a"], OF_BERT),  # pads with another special token
        (["a", "b", "[CLS]", "[SEP]"], OF_BERT),
        (["[PAD]", "</s>", "<s>", "a"], {**OF_BERT, "bos_token_id": 1, "eos_token_id": 2}),  # BigBird
        (LLAMA, OF_LLAMA),
        (LLAMA, {**OF_LLAMA, "pad_token_id": 2}),  # the end is the padding
        (LLAMA, {**OF_LLAMA, "pad_token_id": 0}),  # Vicuna
        (LLAMA, {**OF_LLAMA, "bos_token_id": 4}),  # a default alone
        (LLAMA, {**OF_LLAMA, "eos_token_id": [2, 4]}),
        (LLAMA, {**OF_LLAMA, "eos_token_id": 99}),
        (["Ċ", "</s>", "a"], {**OF_LLAMA, "eos_token_id": 0}),  # BLIP-2 ends at a line's end
        (["!", "<s>", "</s>", "<|im_end|>"], {**OF_LLAMA, "eos_token_id": 3}),
        (["!", "x", "#", "a"], {**OF_LLAMA, "pad_token_id": 0}),
        (["<|endoftext|>", "a", "<|startoftranscript|>"],
         {**dict.fromkeys(IDS, 0), "decoder_start_token_id": 2, "model_type": "whisper"}),
        (["<pad>", "</s>", "a", "<s>"], {**OF_LLAMA, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}),  # Pegasus
        (["!", "a", "#", "<|startoftext|>", "<|endoftext|>"], {**OF_LLAMA, "model_type": "clip_text_model"}),
        (["a", "b", "c", "<pad>"], {**OF_BERT, "vocab_size": 3}),  # ids of another vocabulary
    ],
)  # fmt: skip
def test_a_list_that_fits_is_not(tokens: list[str], config: dict[str, Any]) -> None:
    assert notes(tokens, config) == []


def test_ids_of_generation_config_count_too() -> None:
    (note,) = notes(LLAMA, {**OF_LLAMA, "pad_token_id": None}, {"eos_token_id": 4})
    assert "ids in generation_config.json of m belong" in note
    assert "eos_token_id is 4 ('\"', while '</s>' is 2)" in note


def test_a_tokeniser_beside_the_model_decides() -> None:
    model("m", tokens=CTC, **OF_CTC), model("new", tokens=[*CTC, "x"])
    lists = (a_list("old.json", rolled(CTC, 1)), "new/vocab.json")
    found = cs.transplant("m", "new", vocab=lists, vocab_keys=KEYS).notes
    assert any("in the tokeniser of m: the list of --vocab is used" in note for note in found)
    assert not any("according to" in note for note in found)


@pytest.mark.parametrize("by", [0, 1])
def test_a_merge_says_it_of_lists_for_its_models(by: int) -> None:
    bare("m", len(CTC), **OF_CTC), model("other", tokens=CTC, seed=1, **OF_CTC)
    path = a_list("old.json", rolled(CTC, by))
    plan = cs.merge(
        ["other", "m"], method="linear", weights=[0.5, 0.5], vocab="union", tokens={"m": path}, vocab_keys=KEYS
    )
    assert any(f"ids in config.json of m {OF_OTHER}: pad_token_id is 0" in one for one in plan.notes) == bool(by)
