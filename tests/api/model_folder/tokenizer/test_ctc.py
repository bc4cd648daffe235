"""Tokenisers of wav2vec 2.0: capital letters and word delimiters that they make of texts, and that their lists lack."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model, verbs_of

CTC = "Wav2Vec2CTCTokenizer"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
RUSSIAN = "".join(map(chr, range(ord("а"), ord("я") + 1)))


def tokeniser(path: str, tokens: list[str], *, name: str = CTC, seed: int = 0, **settings: Any) -> None:
    model(path, tokens=tokens, seed=seed, architectures=["Wav2Vec2ForCTC"])
    Path(path, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **settings}))


def notes(about: str) -> list[str]:
    return [one for one in cs.inspect("m").notes if about in one]


@pytest.mark.parametrize(
    ("letters", "lowers", "name", "is_said"),
    [
        (string.ascii_lowercase, True, "Wav2Vec2CTCTokenizer", True),
        (string.ascii_uppercase, True, "Wav2Vec2CTCTokenizer", False),
        (string.ascii_lowercase, False, "Wav2Vec2CTCTokenizer", False),
        (string.ascii_lowercase, True, "PreTrainedTokenizer", False),
        ("一二三", True, "Wav2Vec2CTCTokenizer", False),
    ],
)
def test_capitals_for_a_list_of_small_letters_are_said(letters: str, lowers: bool, name: str, is_said: bool) -> None:
    """The tokeniser of wav2vec 2.0 makes capital letters of texts if do_lower_case is true."""
    tokeniser("m", [*SPECIAL, "|", *letters], name=name, do_lower_case=lowers)
    has = "no letter in vocab.json is a capital letter: letters become unknown"
    assert notes("letters") == (
        [f"do_lower_case of tokenizer_config.json (true) upper-cases texts, but {has}"] if is_said else []
    )


WITHOUT = "which replaces spaces: transformers gives it the id {}, for which the model has no row"


@pytest.mark.parametrize(
    ("tokens", "settings", "said"),
    [
        (string.ascii_lowercase, {}, "'|'"),
        (string.ascii_uppercase, {}, "'|'"),
        (RUSSIAN, {}, "'|'"),
        (string.ascii_lowercase + "|", {"word_delimiter_token": "_"}, "'_'"),
        (string.ascii_lowercase, {"word_delimiter_token": {"content": "|"}}, "'|'"),
        (string.ascii_lowercase + "|", {}, ""),
        (string.ascii_lowercase + " ", {"word_delimiter_token": " "}, ""),
        (string.ascii_lowercase, {"name": "PreTrainedTokenizer"}, ""),
        ("一二三四五六七八九十百千万上下左右中大小", {}, ""),  # no spaces between words
        ("abtdkgmnszrlfv", {}, ""),  # phonemes
    ],
)
def test_a_list_without_its_word_delimiter_is_said(tokens: str, settings: dict[str, Any], said: str) -> None:
    tokeniser("m", [*SPECIAL, *tokens], **settings)
    lacks = f"vocab.json lacks the word_delimiter_token {said}, {WITHOUT.format(4 + len(tokens))}"
    assert notes("word_delimiter_token") == ([lacks] if said else [])


@pytest.mark.costly
@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_that_the_delimiter_is_missing(verb: str) -> None:
    letters = [*SPECIAL, *string.ascii_lowercase]
    tokeniser("sound", letters, word_delimiter_token="a")
    tokeniser("m", letters, seed=1)
    assert any("lacks the word_delimiter_token" in note for note in verbs_of("m")[verb]().notes)


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    tokeniser("m", [*SPECIAL, *string.ascii_lowercase])
    read = transformers.Wav2Vec2CTCTokenizer("m/vocab.json")
    assert read.tokenize("ab cd") == ["a", "b", "|", "c", "d"]
    assert read("ab cd").input_ids == [4, 5, 30, 6, 7]


def test_a_model_with_a_row_for_the_delimiter_is_sound() -> None:
    tokeniser("m", [*SPECIAL, *string.ascii_lowercase])
    config = json.loads(Path("m/config.json").read_text())
    assert config["vocab_size"] == 30
    Path("m/config.json").write_text(json.dumps({**config, "vocab_size": 31}))
    assert notes("word_delimiter_token") == []
