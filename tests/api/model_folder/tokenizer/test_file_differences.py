"""ckpt diff says how the tokenisers of two folders differ, also if their token lists are the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SPECIAL = ["<unk>", "<s>", "</s>"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": row, "content": token, "special": True} for row, token in enumerate(SPECIAL)],
    "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "post_processor": None, "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "vocab": {token: row for row, token in enumerate([*SPECIAL, "a", "b", "c", "ab", "bc", "abc"])},
        "merges": [["a", "b"], ["b", "c"], ["ab", "c"]],
    },
}  # fmt: skip
SETTINGS = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}


def folder(name: str, tokenizer: Any = TOKENIZER, settings: Any = SETTINGS) -> None:
    Path(name).mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(9, 4)}, f"{name}/model.safetensors")
    Path(name, "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 9}))
    Path(name, "tokenizer.json").write_text(json.dumps(tokenizer))
    Path(name, "tokenizer_config.json").write_text(json.dumps(settings))


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(tokenizer: Any) -> None:
        for one in path[:-1]:
            tokenizer = tokenizer[one]
        tokenizer[path[-1]] = value

    return change


ACCORDING = "the tokenisers differ, according to tokenizer.json: "
NORMALISE = "the tokenisers normalise texts differently, according to tokenizer.json: "
SPLIT = "the tokenisers split texts differently, according to tokenizer.json: "
CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (
        lambda one: one["model"]["merges"].reverse(),
        "the tokenisers split texts differently, according to tokenizer.json: the 3 merge rules differ, or are in "
        "another order",
    ),
    (
        lambda one: one["model"]["merges"].pop(),
        "the tokenisers split texts differently, according to tokenizer.json: 3 merge rules in a, 2 in b",
    ),
    (put("model", "vocab", value={**TOKENIZER["model"]["vocab"], "a": 4, "b": 3}),
     "the tokenisers differ: row 3 is 'a' in a and 'b' in b"),
    (put("added_tokens", 2, "special", value=False), f"{ACCORDING}added_tokens.</s>.special is true in a, false in b"),
    (put("normalizer", "type", value="NFKC"), f"{NORMALISE}normalizer.type is 'NFC' in a, 'NFKC' in b"),
    (put("pre_tokenizer", "add_prefix_space", value=True),
     f"{NORMALISE}add_prefix_space is false in a, true in b"),
    (put("pre_tokenizer", "type", value="Whitespace"),
     f"{SPLIT}pre_tokenizer.type is 'ByteLevel' in a, 'Whitespace' in b"),
    (put("pre_tokenizer", "use_regex", value=False), f"{ACCORDING}pre_tokenizer.use_regex is null in a, false in b"),
    (put("decoder", value=None), f"{ACCORDING}decoder is {{'type': 'ByteLevel'}} in a, null in b"),
    (put("truncation", value={"max_length": 4}), f"{ACCORDING}truncation is null in a, {{'max_length': 4}} in b"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "note"), CHANGES)
def test_each_difference_is_one_line(change: Callable[[Any], None], note: str) -> None:
    folder("a")
    other = copy.deepcopy(TOKENIZER)
    change(other)
    folder("b", other)
    assert list(cs.diff("a", "b").notes) == [note]


def test_equal_tokenisers_that_are_written_in_other_ways_get_no_note() -> None:
    folder("a")
    other = {**TOKENIZER, "model": {**TOKENIZER["model"], "merges": ["a b", "b c", "ab c"]}}
    folder("b", other, {**SETTINGS, "name_or_path": "elsewhere"})
    assert not cs.diff("a", "b").notes


def test_settings_templates_and_other_files_that_differ_are_said() -> None:
    folder("a")
    folder("b", settings={"bos_token": "<s>", "eos_token": "<s>"})
    for name, rules in (("a", "a b\nb c\n"), ("b", "b c\na b\n")):
        Path(name, "merges.txt").write_text(f"#version: 0.2\n{rules}")
    notes = cs.diff("a", "b").notes
    assert "the tokenisers differ, according to tokenizer_config.json: eos_token is '</s>' in a, '<s>' in b" in notes
    assert "only a has a chat template" in notes
    assert "the tokenisers differ: merges.txt differs between a and b" in notes


def test_a_tokeniser_that_was_loaded_and_saved_again_gets_no_note() -> None:
    """transformers 5 writes how the tokeniser was loaded."""
    folder("a")
    folder("b", settings={**SETTINGS, "is_local": True, "local_files_only": False, "pad_token": None})
    assert not cs.diff("a", "b").notes


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"eos_token": "<s>"}, ""),
        ({"eos_token": "<s>", "x": 1}, "; x differs, too"),
        ({"eos_token": "<s>", "pad_token": "<s>", "x": {"y": 1}}, "; pad_token, x differ, too"),
        ({"eos_token": "<s>", **{f"x{i}": 1 for i in range(9)}}, "; x0, x1, x2, and 6 more differ, too"),
    ],
)
def test_all_fields_that_differ_are_named(changes: dict[str, Any], more: str) -> None:
    folder("a")
    folder("b", settings={**SETTINGS, **changes})
    (note,) = cs.diff("a", "b").notes
    of = "the tokenisers differ, according to tokenizer_config.json: "
    assert note == f"{of}eos_token is '</s>' in a, '<s>' in b{more}"


@pytest.mark.parametrize("is_special", [True, False])
def test_an_added_token_is_told_once(is_special: bool) -> None:
    """Only what the note on the token lists does not say is another difference."""
    folder("a")
    other = copy.deepcopy(TOKENIZER)
    other["added_tokens"] = [{"id": 9, "content": "<x>", "special": True}, *other["added_tokens"]]
    other["added_tokens"][3]["special"] = is_special
    folder("b", other)
    more = [] if is_special else [f"{ACCORDING}added_tokens.</s>.special is true in a, false in b"]
    told = [note for note in cs.diff("a", "b").notes if "differ" in note]
    assert told == [*more, "the tokenisers differ: row 9 is no token in a and '<x>' in b"]
