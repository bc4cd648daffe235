"""Tokenisers that make small letters of texts, and lists that have capitals, or none."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.vocabulary.huggingface import byte_letters

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


LETTERS = sorted(byte_letters())
WITH_SPACE = [f"Ġ{one}" for one in ("the", "a", "of", "and", "in", "to", "is", "it")]
MADE = [*LETTERS, *(f"m{row}" for row in range(40)), *WITH_SPACE]
CAPS = [*MADE, "ĠThe", "ĠMB"]
OF_CLIP = [*LETTERS, *(f"{one}</w>" for one in LETTERS), *(f"m{row}</w>" for row in range(40))]
LOWER = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
SAID = "lower-cases texts, but 2 of 50 tokens of several characters in {} have capital letters, so the tokeniser never"


def pieces(kind: str, tokens: list[str], normalizer: Any, model_type: str = "gpt2", **more: Any) -> None:
    """A model with a tokenizer.json for BPE or Unigram."""
    model("m", rows=len(tokens), vocab_size=len(tokens), eos_token_id=None, pad_token_id=None, model_type=model_type)
    Path("m/vocab.json").unlink(), Path("m/generation_config.json").unlink()
    rows: Any = {token: row for row, token in enumerate(tokens)}
    rows = rows if kind == "BPE" else [[token, -float(row)] for token, row in rows.items()]
    whole = {"type": kind, "vocab": rows, **({"merges": []} if kind == "BPE" else {"unk_id": 0})}
    Path("m/tokenizer.json").write_text(json.dumps({"normalizer": normalizer, "model": whole}))
    Path("m/tokenizer_config.json").write_text(json.dumps(more))


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize(
    ("tokens", "normalizer", "more", "said"),
    [
        (CAPS, {"type": "Lowercase"}, {}, "the normalizer of tokenizer.json " + SAID.format("tokenizer.json")),
        (CAPS, LOWER, {}, "the normalizer of tokenizer.json " + SAID.format("tokenizer.json")),
        (CAPS, bert(True), {"model_type": "openai-gpt"},
         "the normalizer of tokenizer.json " + SAID.format("tokenizer.json")),
        (CAPS, None, {"tokenizer_class": "AlbertTokenizer", "do_lower_case": True},
         "do_lower_case of tokenizer_config.json (true) " + SAID.format("tokenizer.json")),
        (CAPS, None, {"tokenizer_class": "FlaubertTokenizer", "do_lowercase": True},
         "do_lowercase of tokenizer_config.json (true) " + SAID.format("tokenizer.json")),
        (CAPS, None, {}, ""),
        (CAPS, bert(False), {}, ""),
        (CAPS, {"type": "Lowercase"}, {"model_type": "siglip2"}, ""),  # Gemma's tokeniser, on purpose
        (CAPS, {"type": "Lowercase"}, {"model_type": "siglip", "tokenizer_class": "GemmaTokenizer"}, ""),
        (CAPS, None, {"tokenizer_class": "GPT2Tokenizer", "do_lower_case": True}, ""),  # it does not read this
        (CAPS, None, {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False}, ""),
        (MADE, None, {}, ""),  # single capital letters stay
        (MADE, LOWER, {}, ""),
        (OF_CLIP, LOWER, {"model_type": "clip"}, ""),
        ([*CAPS, *(f"w{row}" for row in range(200))], LOWER, {}, ""),  # fewer than one in a hundred
    ],
)  # fmt: skip
def test_capitals_in_pieces_of_texts_that_are_lower_cased_are_said(
    kind: str, tokens: list[str], normalizer: Any, more: dict[str, Any], said: str
) -> None:
    pieces(kind, tokens, normalizer, **more)
    found = notes()
    assert len(found) == bool(said)
    assert not said or found[0].startswith(said)


@pytest.mark.parametrize("lowers", [True, False])
def test_capitals_in_a_list_of_xlm_are_said(lowers: bool) -> None:
    """A slow tokeniser, whose tokens and merge rules are in vocab.json and merges.txt."""
    pieces("BPE", [*OF_CLIP, *(f"M{row}</w>" for row in range(9))], None, model_type="xlm")
    vocab = json.loads(Path("m/tokenizer.json").read_text())["model"]["vocab"]
    Path("m/vocab.json").write_text(json.dumps(vocab)), Path("m/tokenizer.json").unlink()
    Path("m/merges.txt").write_text("a b</w>\n")
    said = {"tokenizer_class": "XLMTokenizer", "do_lowercase_and_remove_accent": lowers}
    Path("m/tokenizer_config.json").write_text(json.dumps(said))
    assert [one[:63] for one in notes()] == ["do_lowercase_and_remove_accent of tokenizer_config.json (true) "] * lowers


def test_a_check_warns_of_it() -> None:
    pieces("BPE", CAPS, LOWER)
    note = notes()[0]
    assert (note.kind.check, note.kind.is_serious) == ("vocabulary", False)
