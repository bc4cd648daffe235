"""Tokenisers for WordPiece that make small letters of texts, and lists that have capitals, or none."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model, verbs_of

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
SMALL = [*SPECIAL, *string.ascii_lowercase, *(f"##{one}" for one in string.ascii_lowercase), "the", "##ing", "ß"]
CASED = [*SMALL, *string.ascii_uppercase, "The"]
CHINESE = [*SPECIAL, "a", "b", "的", "##的"]


def tokeniser(
    path: str, tokens: list[str], lowers: bool | None, *, name: str | None = "BertTokenizer", normalizer: Any = ...,
    seed: int = 0, **more: Any,
) -> None:  # fmt: skip
    """A model with a vocab.txt, or with a tokenizer.json if there is a ``normalizer``, which may be None."""
    model(path, rows=len(tokens), seed=seed, vocab_size=len(tokens), eos_token_id=None, pad_token_id=0)
    Path(path, "vocab.json").unlink(), Path(path, "generation_config.json").unlink()
    fields = {"do_lower_case": lowers, "tokenizer_class": name, **more}
    said = {field: value for field, value in fields.items() if value is not None}
    Path(path, "tokenizer_config.json").write_text(json.dumps(said))
    if normalizer is ...:
        Path(path, "vocab.txt").write_text("\n".join(tokens) + "\n")
        return
    vocab = {token: row for row, token in enumerate(tokens)}
    whole = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab}
    Path(path, "tokenizer.json").write_text(json.dumps({"normalizer": normalizer, "model": whole}))


def notes() -> list[str]:
    return [one for one in cs.inspect("m").notes if "letters" in one]


BERT = "do_lower_case of tokenizer_config.json"
CAPITALS = "lower-cases texts, but 27 of 82 words in {} have capital letters, so the tokeniser never produces them: 'A', 'B', 'C', and 24 more"
NONE = "keeps capital letters, but no word in {} has one: words with capital letters become unknown"


def bert(lowers: bool) -> dict[str, Any]:
    return {"type": "BertNormalizer", "lowercase": lowers}


@pytest.mark.parametrize(
    ("tokens", "lowers", "more", "said"),
    [
        (CASED, True, {}, f"{BERT} (true) {CAPITALS.format('vocab.txt')}"),
        (SMALL, False, {}, f"{BERT} (false) {NONE.format('vocab.txt')}"),
        (CASED, None, {"normalizer": bert(True)}, f"the normalizer of tokenizer.json {CAPITALS.format('tokenizer.json')}"),
        (CASED, None, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
         f"the normalizer of tokenizer.json {CAPITALS.format('tokenizer.json')}"),
        (SMALL, None, {"normalizer": None}, f"the normalizer of tokenizer.json {NONE.format('tokenizer.json')}"),
        (CASED, True, {"normalizer": bert(True)},
         f"{BERT} (true) and the normalizer of tokenizer.json {CAPITALS.format('tokenizer.json')}"),
        (SMALL, False, {"normalizer": bert(True)}, f"{BERT} (false) {NONE.format('tokenizer.json')}"),
    ],
)  # fmt: skip
def test_letters_that_no_token_has_are_said(tokens: Any, lowers: Any, more: Any, said: str) -> None:
    tokeniser("m", tokens, lowers, **more)
    assert notes() == [said]


@pytest.mark.parametrize(
    ("tokens", "lowers", "more"),
    [
        (CASED, False, {}),
        (SMALL, True, {}),
        (CASED, None, {}),
        (SMALL, None, {}),
        ([*SMALL, *(f"w{one}" for one in range(50)), "A"], True, {}),  # one of over a hundred
        (CHINESE, False, {}),
        (SMALL, False, {"name": "BertJapaneseTokenizer"}),
        (SMALL, False, {"name": "PreTrainedTokenizerFast", "normalizer": bert(True)}),
        (CASED, True, {"do_basic_tokenize": False}),
        ([*SMALL, "<E1>", "[TITLE]"], True, {}),
        (CASED, False, {"normalizer": bert(False)}),
        (SMALL, True, {"normalizer": bert(True)}),
    ],
)
def test_a_sound_list_is_not(tokens: Any, lowers: Any, more: Any) -> None:
    tokeniser("m", tokens, lowers, **more)
    assert notes() == []


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    tokeniser("sound", CASED, False), tokeniser("m", CASED, True, seed=1)
    assert any("lower-cases texts" in note for note in verbs_of("m")[verb]().notes)


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    tokeniser("cased", CASED, True), tokeniser("small", SMALL, False)
    assert transformers.BertTokenizer.from_pretrained("cased").tokenize("The") == ["the"]
    assert transformers.BertTokenizer.from_pretrained("small").tokenize("The the") == ["[UNK]", "the"]
