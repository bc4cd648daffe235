"""Tokenisers some of whose files are missing, and those that have no token list on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model

END = ": the tokeniser cannot be loaded"
MARIAN = {"tokenizer_class": "MarianTokenizer"}
M2M = {"tokenizer_class": "M2M100Tokenizer"}
NO_LIST = "the folder has tokenizer_config.json, but no list of tokens (tokenizer.json, vocab.json, vocab.txt, tokenizer.model)"
NEEDS = "for its tokens, and the folder has only"


def folder(settings: dict[str, Any] | None, *names: str, **config: Any) -> Path:
    """A model whose folder has files with these names; their contents are not looked at."""
    path = Path(model("m", **config))
    for one in ("tokenizer.json", "vocab.json", "tokenizer_config.json"):
        (path / one).unlink(missing_ok=True)
    if settings is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text('{"<s>": 0, "a": 1}' if name.endswith(".json") else "a\n")
    return path


def said(path: Path) -> list[str]:
    found = [one for one in cs.inspect(str(path)).notes if one.endswith(END)]
    assert [one for one in cs.convert(str(path)).notes if one.endswith(END)] == found
    row = cs.check(str(path)).row("vocabulary")
    assert [one.what for one in row.found if one.what.endswith(END)] == found
    assert row.status.value == "WARN" or not found
    return [one.removesuffix(END) for one in found]


@pytest.mark.parametrize(
    ("settings", "names", "note"),
    [
        (MARIAN, ["source.spm", "vocab.json"], f"MarianTokenizer needs target.spm {NEEDS} source.spm, vocab.json"),
        ({}, ["target.spm", "vocab.json"], f"MarianTokenizer needs source.spm {NEEDS} target.spm, vocab.json"),
        (None, ["source.spm", "vocab.json"], f"MarianTokenizer needs target.spm {NEEDS} source.spm, vocab.json"),
        (M2M, ["vocab.json"], f"M2M100Tokenizer needs sentencepiece.bpe.model {NEEDS} vocab.json"),
        (M2M, ["added_tokens.json", "special_tokens_map.json"],
         "the folder has tokenizer_config.json, but no list of tokens (tokenizer.json, vocab.json, sentencepiece.bpe.model)"),
        ({"tokenizer_class": "LlamaTokenizerFast"}, ["added_tokens.json"], NO_LIST),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, ["special_tokens_map.json"], NO_LIST),
        ({"tokenizer_class": "BertTokenizer", "model_max_length": 64}, [], NO_LIST),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(settings: dict[str, Any] | None, names: list[str], note: str) -> None:
    assert said(folder(settings, *names)) == [note]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("settings", "names", "config"),
    [
        (MARIAN, ["source.spm", "target.spm", "vocab.json"], {}),
        (MARIAN, ["source.spm", "target.spm", "vocab.json", "target_vocab.json"], {}),
        (MARIAN, ["tokenizer.json"], {}),
        (M2M, ["vocab.json", "sentencepiece.bpe.model"], {}),
        ({"tokenizer_class": "LlamaTokenizer"}, ["tokenizer.model"], {}),
        ({"tokenizer_class": "LlamaTokenizer"}, ["tekken.json"], {}),
        ({"tokenizer_class": "ByT5Tokenizer"}, ["special_tokens_map.json"], {}),
        ({"tokenizer_class": "CanineTokenizer"}, [], {}),
        ({"tokenizer_class": "PerceiverTokenizer"}, [], {}),
        ({"model_max_length": 2048}, [], {}),  # of no class
        ({"tokenizer_class": "CharacterTokenizer"}, [], {}),  # of another library
        ({"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["t.X", None]}}, [], {}),
        ({"tokenizer_class": "LlamaTokenizer"}, ["tokenizer/tokenizer.json"], {}),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, ["own.tiktoken"], {}),
        (None, ["preprocessor_config.json"], {}),
        (None, [], {}),
    ],
)  # fmt: skip
def test_a_tokeniser_that_can_be_loaded_or_is_not_there_gets_no_note(
    settings: dict[str, Any] | None, names: list[str], config: dict[str, Any]
) -> None:
    assert said(folder(settings, *names, **config)) == []
