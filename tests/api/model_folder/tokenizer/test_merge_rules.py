"""Merge rules of byte-level BPE: a merges.txt that is missing, or another model's, beside a vocab.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of

LIST = [*TOKENS, "Ġ", "Ġa", "bc", "Ġabc"]
RULES = "#version: 0.2\nĠ a\nb c\nĠa bc\n"


def byte_level(path: str, rules: str | None = RULES, tokens: list[str] = LIST, seed: int = 0) -> None:
    model(path, tokens=tokens, seed=seed)
    if rules is not None:
        Path(path, "merges.txt").write_text(rules)


def notes(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if "merges.txt" in note]


@pytest.mark.parametrize("rules", [RULES, RULES.replace("\n", "\r\n"), "", "Ġ a\n\n"])
def test_rules_that_make_listed_tokens_are_not_mentioned(rules: str) -> None:
    byte_level("m", rules)
    assert not notes("m")


def test_rules_of_another_model_are_counted() -> None:
    byte_level("m", RULES + "a d\nd d\n# #\n")
    assert notes("m") == [
        "3 of 6 rules in merges.txt make tokens that vocab.json does not list, so the tokeniser cannot be loaded: "
        "'ad', 'dd', '##'"
    ]


def test_missing_rules_are_noted() -> None:
    byte_level("m", None)
    assert notes("m") == ["vocab.json is a list for byte-level BPE, and merges.txt is missing: "
                          "the tokeniser cannot be loaded"]  # fmt: skip


def test_a_list_without_byte_level_tokens_needs_no_rules() -> None:
    byte_level("m", None, [*TOKENS, "Ġ"])
    assert not notes("m")


def test_tokenizer_json_replaces_both_files() -> None:
    byte_level("m", None)
    vocabulary = {token: row for row, token in enumerate(LIST)}
    text = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    Path("m/tokenizer.json").write_text(text)
    assert not notes("m")


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_has_the_note(verb: str) -> None:
    byte_level("sound"), byte_level("m", RULES + "a d\n", seed=1)
    assert any("1 of 4 rules in" in note for note in verbs_of("m")[verb]().notes)


def test_tokenizers_agrees() -> None:
    models = pytest.importorskip("tokenizers").models
    byte_level("sound"), byte_level("m", RULES + "a d\n")
    models.BPE.from_file("sound/vocab.json", "sound/merges.txt")
    with pytest.raises(Exception, match="out of vocabulary"):
        models.BPE.from_file("m/vocab.json", "m/merges.txt")
