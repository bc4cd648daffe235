"""``added_tokens_decoder`` of tokenizer_config.json, and a list of tokens that says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of
from .test_token_lists import whole

BEGIN = "added_tokens_decoder of tokenizer_config.json and {} have different ids for {}: "
OURS, WHOLE = "tokenizer_config.json", "tokenizer.json"


def say(path: str, numbers: dict[int, str]) -> None:
    rows = {str(number): {"content": token, "special": True} for number, token in numbers.items()}
    Path(path, "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": rows}))


def notes() -> list[str]:
    return [one for one in cs.inspect("m").notes if one.startswith("added_tokens_decoder")]


@pytest.mark.parametrize(
    ("numbers", "number", "said"),
    [
        ({5: "<user>"}, "1 token", f"'<user>' is 5 in {OURS} and missing in {WHOLE}, where 5 is 'b': it gets the id 8"),
        ({7: "<s>"}, "1 token", f"'<s>' is 7 in {OURS} and 1 in {WHOLE}"),
        ({6: "<s>", 7: "<x>"}, "2 tokens", f"'<s>' is 6 in {OURS} and 1 in {WHOLE}, '<x>' is 7 in {OURS} "
         f"and missing in {WHOLE}, where 7 is 'd': it gets the id 8"),
        ({9: "<x>"}, "1 token", f"'<x>' is 9 in {OURS} and missing in {WHOLE}: it gets the id 8"),
    ],
)  # fmt: skip
def test_an_id_of_another_token_is_said(numbers: Any, number: str, said: str) -> None:
    say(whole("m"), numbers)
    assert notes() == [BEGIN.format("tokenizer.json", number) + said]


@pytest.mark.parametrize("numbers", [{1: "<s>", 2: "</s>"}, {8: "<x>", 9: "<y>"}, {}])
def test_equal_ids_and_tokens_that_follow_are_not(numbers: Any) -> None:
    say(whole("m"), numbers)
    assert notes() == []


def test_a_token_with_another_id_than_in_an_older_list_is_said() -> None:
    model("m")
    say("m", {7: "<s>"})
    assert notes() == [BEGIN.format("vocab.json", "1 token") + f"'<s>' is 7 in {OURS} and 1 in vocab.json"]


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    whole("sound"), say(whole("m", seed=1), {5: "<user>"})
    assert any(note.startswith("added_tokens_decoder") or ": added_tokens_decoder" in note
               for note in verbs_of("m")[verb]().notes)  # fmt: skip


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    say(whole("m"), {1: "[CLS]", 5: "<user>", 9: "<x>"})
    made = transformers.PreTrainedTokenizerFast.from_pretrained("m")
    assert made.convert_tokens_to_ids(["[CLS]", "<user>", "<x>", TOKENS[5]]) == [8, 9, 10, 5]


def test_a_token_whose_id_is_that_of_another_in_an_older_list_is_said() -> None:
    model("m")
    say("m", {5: "|", 8: "<x>"})  # what follows the list is an added token
    said = f"5 is '|' in {OURS} and {TOKENS[5]!r} in vocab.json"
    assert notes() == [BEGIN.format("vocab.json", "1 token") + said]
