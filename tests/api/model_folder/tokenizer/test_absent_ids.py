"""Ids of special tokens that are rows of the embedding, but no tokens of the tokeniser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model, verbs_of
from .test_special_roles import LLAMA, TOKENS

ROWS = 16
"""Four more than there are tokens."""
SPELLED = {"vocab_size": ROWS, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"]}


def padded(
    path: str, config: dict[str, Any], generation: dict[str, Any], names: dict[str, Any], kind: str, seed: int = 0
) -> None:
    model(path, rows=ROWS, tokens=TOKENS, seed=seed, **SPELLED | config)
    Path(path, "generation_config.json").write_text(json.dumps(generation))
    Path(path, "tokenizer_config.json").write_text(json.dumps(names))
    listed = json.loads(Path(path, "vocab.json").read_text())
    if kind != "vocab.json":
        Path(path, "vocab.json").unlink()
    if kind == "tokenizer.json":
        Path(path, kind).write_text(
            json.dumps({"added_tokens": [], "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": listed}})
        )
    elif kind == "vocab.txt":
        Path(path, kind).write_text("\n".join(TOKENS) + "\n")


def notes(
    config: dict[str, Any],
    generation: dict[str, Any] | None = None,
    names: dict[str, Any] = LLAMA,
    kind: str = "tokenizer.json",
) -> list[str]:
    padded("m", config, {} if generation is None else generation, names, kind)
    found = [one for one in cs.inspect("m").notes if "_token" in one]
    assert [one for one in cs.convert("m").notes if "_token" in one] == found
    return found


BEGIN = "these ids of special tokens belong to no token ({} has 12 tokens): "
END = ", while eos_token is '</s>' (2)"


@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({"eos_token_id": 13}, None, f"eos_token_id of config.json is 13{END}"),
        ({}, {"eos_token_id": 13}, f"eos_token_id of generation_config.json is 13{END}"),
        ({}, {"eos_token_id": [2, 13]}, f"eos_token_id of generation_config.json has 13{END}"),
        ({}, {"eos_token_id": [13, 14]}, f"eos_token_id of generation_config.json has 13, 14{END}"),
        ({"decoder_start_token_id": 15}, None, "decoder_start_token_id of config.json is 15"),
        ({"forced_eos_token_id": 15}, None, "forced_eos_token_id of config.json is 15"),
        ({"bos_token_id": 12}, None, "bos_token_id of config.json is 12, while bos_token is '<s>' (1)"),
        ({"video_token_id": 13}, None, "video_token_id of config.json is 13"),
        ({"image_token_index": 12}, None, "image_token_index of config.json is 12"),
        ({"pad_token_id": 12}, None, "pad_token_id of config.json is 12, while pad_token is '<pad>' (0)"),
    ],
)
def test_an_id_that_no_token_has_is_said(config: Any, generation: Any, said: str, kind: str) -> None:
    assert notes(config, generation, kind=kind) == [BEGIN.format(kind) + said]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"pad_token_id": 12}, {"eos_token": "</s>"}),  # a row for padding, of which the tokeniser does not know
        ({"bos_token_id": 12}, {"eos_token": "</s>"}),  # as BLIP's
        ({"bos_token_id": 12, "architectures": ["BertModel"]}, LLAMA),
        ({"pad_token_id": 12}, LLAMA | {"pad_token": "<new>"}),  # transformers gives it this id
        ({"eos_token_id": 12}, LLAMA | {"added_tokens_decoder": {"12": {"content": "<end>"}}}),
        ({"eos_token_id": 13}, LLAMA | {"auto_map": {"AutoTokenizer": ["code.Own", None]}}),
        ({"eos_token_id": 2, "pad_token_id": 0}, LLAMA),
    ],
)
def test_a_sound_id_is_not(config: Any, names: Any) -> None:
    generation = None if "architectures" not in config else {}
    padded("m", config, {}, names, "tokenizer.json")
    if generation is not None:
        Path("m/generation_config.json").unlink()
    assert not [one for one in cs.inspect("m").notes if "_token" in one]


def test_a_model_without_a_tokeniser_is_not_judged() -> None:
    padded("m", {"eos_token_id": 13}, {}, LLAMA, "none")
    assert not [one for one in cs.inspect("m").notes if "_token" in one]


def test_a_tokeniser_that_adds_tokens_by_its_code_is_not_judged() -> None:
    names = LLAMA | {"tokenizer_class": "M2M100Tokenizer"}
    assert notes({"forced_bos_token_id": 13}, names=names, kind="vocab.json") == []


@pytest.mark.costly
@pytest.mark.parametrize(
    ("names", "config", "said"),
    [
        ({"eos_token": "<end>"}, {}, "eos_token '<end>', which {} lacks: transformers gives it the id 12, while "
         "eos_token_id of config.json is 2 ('</s>')"),
        ({"pad_token": {"content": "[PAD]"}}, {"pad_token_id": 0}, "pad_token '[PAD]', which {} lacks: transformers gives it the id 12, "
         "while pad_token_id of config.json is 0 ('<pad>')"),
        ({"unk_token": "[X]"}, {"unk_token_id": 3}, "unk_token '[X]', which {} lacks: transformers gives it the id 12, while "
         "unk_token_id of config.json is 3 ('<unk>')"),
        ({"eos_token": "<end>", "pad_token": "[PAD]"}, {"eos_token_id": 13, "pad_token_id": 13}, "eos_token '<end>', "
         "which {} lacks: transformers gives it the id 12, while eos_token_id of config.json is 13 ('[PAD]')"),
        ({"unk_token": "[X]"}, {}, ""),
        ({"eos_token": "<end>"}, {"eos_token_id": 12}, ""),
        ({"eos_token": "<end>"}, {"eos_token_id": [2, 12]}, ""),
        ({"eos_token": "<end>"}, {"eos_token_id": None}, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json"])
def test_a_named_token_that_gets_a_row_of_its_own_is_said(names: Any, config: Any, said: str, kind: str) -> None:
    found = notes(config, names=LLAMA | names, kind=kind)
    assert found == ([f"tokenizer_config.json has the {said.format(kind)}"] if said else [])


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    padded("sound", {}, {}, LLAMA, "tokenizer.json")
    padded("m", {"eos_token_id": 13}, {"eos_token_id": 13}, LLAMA, "tokenizer.json", seed=1)
    assert any("ids of special tokens belong to no token" in note for note in verbs_of("m")[verb]().notes)


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    padded("m", {}, {}, LLAMA | {"eos_token": "<end>", "pad_token": "[PAD]"}, "tokenizer.json")
    made = transformers.PreTrainedTokenizerFast.from_pretrained("m")
    assert (made.eos_token_id, made.pad_token_id, made.bos_token_id) == (12, 13, 1)
