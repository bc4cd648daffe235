"""New tokens are cut as the source's own WordPiece cuts words: held against the tokenizers package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptsurgeon.vocabulary.mapping import Pieces
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

TOKENS = [
    "[UNK]",
    "[CLS]",
    "a",
    "i",
    "n",
    "g",
    "s",
    "low",
    "lower",
    "er",
    "ing",
    "new",
    "##",
    "##i",
    "##n",
    "##g",
    "##ng",
    "##er",
    "##s",
    "##lo",
    "##low",
    "##a",
]
WORDS = [
    "lowering",
    "newlower",
    "newlow",
    "lowing",
    "ags",
    "lowest",
    "ing",
    "lower",
    "as",
    "nnn",
    "anger",
    "aloa",
    "x",
    "saloer",
    "ingx",
    "lowlowlow",
]


def cut(name: str, *words: str) -> list[list[str]]:
    vocabulary = read_vocabulary(name)
    pieces = Pieces(vocabulary)
    return [[vocabulary.tokens[row] for row in pieces.cut(word)] for word in words]


def write(name: str) -> str:
    numbers = {token: i for i, token in enumerate(TOKENS)}
    model = {"model": {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab": numbers}}
    texts = {"tokenizer.json": json.dumps(model), "vocab.json": json.dumps(numbers), "vocab.txt": "\n".join(TOKENS)}
    Path(name).write_text(texts[name])
    return name


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "vocab.txt"])
def test_only_marked_pieces_continue_a_word_and_the_longest_comes_first(name: str) -> None:
    expected = [["lower", "##i", "##ng"], ["new", "##low", "##er"], ["a", "##ng", "##er"], []]
    assert cut(write(name), "lowering", "newlower", "anger", "newingx") == expected


def test_words_are_cut_as_tokenizers_cuts_them() -> None:
    models = pytest.importorskip("tokenizers.models")
    model = models.WordPiece({token: i for i, token in enumerate(TOKENS)}, unk_token="[UNK]")
    theirs = [[token.value for token in model.tokenize(word)] for word in WORDS]
    assert ["[UNK]"] in theirs
    assert cut(write("vocab.txt"), *WORDS) == [[] if found == ["[UNK]"] else found for found in theirs]


def test_a_token_inside_a_word_is_cut_into_such_pieces_and_a_special_one_is_not() -> None:
    assert cut(write("vocab.txt"), "##lowing", "##newer", "[ing]") == [["##low", "##i", "##ng"], [], []]


def test_other_kinds_are_cut_anywhere() -> None:
    Path("tokens.txt").write_text("\n".join(["<unk>", "low", "er", "##"]))
    assert cut("tokens.txt", "lower", "##low") == [["low", "er"], ["##", "low"]]
    Path("tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"[UNK]": 0, "a": 1, "##b": 2}}}))
    assert cut("tokenizer.json", "aa") == [["a", "a"]]
