"""Merge rules of byte-level BPE: a merges.txt that is missing, or another model's, beside a vocab.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of

LIST = [*TOKENS, "Ġ", "Ġa", "bc", "Ġabc", "##c"]
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


PAIRS = [f"{one}{other}" for one in "abcdefgh" for other in "stuvwxyz"]
CHARACTERS = [*"abcdefghstuvwxyz", "Ġ", "Ġa", "<s>"]


def rules_for(pairs: list[str]) -> str:
    return "\n".join(["#version: 0.2", "Ġ a", *(" ".join(pair) for pair in pairs), ""])


@pytest.mark.parametrize(("left", "said"), [(64, 0), (60, 0), (45, 0), (44, 20), (20, 44)])
def test_a_file_of_rules_that_was_cut_is_noted(left: int, said: int) -> None:
    byte_level("m", rules_for(PAIRS[:left]), [*CHARACTERS, *PAIRS])
    wanted = f"no rule in merges.txt makes {said} of 65 tokens of several characters in vocab.json, so the tokeniser never produces them"
    found = [note for note in notes("m") if "no rule" in note]
    assert len(found) == bool(said), found
    assert all(note.startswith(wanted) for note in found)


def test_tokenizers_agrees_that_a_token_without_a_rule_is_never_made() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    list_of = {token: row for row, token in enumerate([*CHARACTERS, *PAIRS])}
    made = tokenizers.models.BPE(list_of, [tuple(pair) for pair in PAIRS[:44]])
    assert [one.value for one in made.tokenize(PAIRS[43])] == [PAIRS[43]]
    assert [one.value for one in made.tokenize(PAIRS[44])] == [*PAIRS[44]]


def test_missing_rules_are_noted() -> None:
    byte_level("m", None)
    assert notes("m") == ["vocab.json is a list for byte-level BPE, and merges.txt is missing: "
                          "the tokeniser cannot be loaded"]  # fmt: skip


def test_a_list_without_byte_level_tokens_needs_no_rules() -> None:
    byte_level("m", None, [*TOKENS, "Ġ"])
    assert not notes("m")


def in_one_file(merges: Any, seed: int = 0, path: str = "m", added: str = "", **more: Any) -> None:
    """A byte-level tokeniser whose tokenizer.json has its list and its rules."""
    byte_level(path, None, seed=seed)
    Path(path, "vocab.json").unlink()
    vocabulary = {token: row for row, token in enumerate(LIST) if token != added}
    rows = [{"id": LIST.index(added), "content": added, "special": True}] if added else []
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": rows}
    steps = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    document = {**head, **steps, "model": {"type": "BPE", **more, "vocab": vocabulary, "merges": merges}}
    Path(path, "tokenizer.json").write_text(json.dumps(document))


def own_rules(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if "merge rule" in note]


@pytest.mark.parametrize(
    ("merges", "more"),
    [
        ([], {}),
        (["Ġ a", "b c", "Ġa bc"], {}),
        ([["Ġ", "a"], ["b", "c"]], {}),
        (["#version: 0.2", "Ġ a"], {}),
        (["b ##c"], {"continuing_subword_prefix": "##"}),  # bc: the prefix is cut off
        (["a d"], {"type": "WordLevel", "unk_token": "a"}),
    ],
)
def test_tokenizer_json_replaces_both_files(merges: Any, more: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    in_one_file(merges, **more)
    assert not notes("m")
    assert not own_rules("m")
    tokenizers.Tokenizer.from_file("m/tokenizer.json")


@pytest.mark.parametrize(
    ("merges", "added", "more", "said"),
    [
        (["Ġ a", "a d", "d d"], "", {}, "2 of 3 merge rules in tokenizer.json need tokens that it does not list, "
         "so the tokeniser cannot be loaded: 'ad', 'dd'"),
        ([["Ġ", "a"], ["x", "a"]], "", {}, "1 of 2 merge rules in tokenizer.json need tokens that it does not list, "
         "so the tokeniser cannot be loaded: 'x'"),
        (["b c"], "bc", {}, "1 of 1 merge rule in tokenizer.json need tokens that it does not list, "
         "so the tokeniser cannot be loaded: 'bc'"),
    ],
)  # fmt: skip
def test_rules_of_another_model_in_tokenizer_json_are_counted(merges: Any, added: str, more: Any, said: str) -> None:
    in_one_file(merges, added=added, **more)
    assert own_rules("m") == [said]


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_has_the_note_on_tokenizer_json(verb: str) -> None:
    in_one_file(["Ġ a"], path="sound"), in_one_file(["a d"], seed=1)
    assert any("1 of 1 merge rule" in note for note in verbs_of("m")[verb]().notes)


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


@pytest.mark.parametrize("merges", [["a d"], [["a", "d"]], ["x a"]])
def test_tokenizers_agrees_on_tokenizer_json(merges: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    in_one_file(merges)
    with pytest.raises(Exception, match="out of vocabulary"):
        tokenizers.Tokenizer.from_file("m/tokenizer.json")
    assert own_rules("m")


OWN = ["Ġ a", "b c", "Ġa bc"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (OWN, ""),
        (["#version: 0.2", *OWN, ""], ""),
        (OWN[:2], "merges.txt has 2 merge rules, but tokenizer.json has 3: programs that read merges.txt split texts"),
        ([*OWN, *OWN], "merges.txt has 6 merge rules, but tokenizer.json has 3: "),
        (["Ġ a", "b c", "d d"], "1 of 3 tokens that merge rules of merges.txt make (a sample) are not in tokenizer.json: "
         "programs that read merges.txt split texts into different tokens: 'dd'"),
        (["not a rule at all"], "1 of 1 token that merge rules of merges.txt make"),
    ],
)  # fmt: skip
def test_a_merges_file_of_another_tokeniser_beside_tokenizer_json_is_noted(rules: list[str], said: str) -> None:
    in_one_file(OWN)
    Path("m/merges.txt").write_text("\n".join(rules))
    assert len(notes("m")) == bool(said)
    assert all(note.startswith(said) for note in notes("m"))


@pytest.mark.parametrize(("number", "is_said"), [(len(LIST), False), (len(LIST) // 2, True)])
def test_a_token_list_that_was_cut_beside_tokenizer_json_is_noted(number: int, is_said: bool) -> None:
    in_one_file(OWN)
    Path("m/vocab.json").write_text(json.dumps({token: row for row, token in enumerate(LIST[:number])}))
    said = f"vocab.json has {number} tokens, but tokenizer.json has {len(LIST)} without added tokens"
    assert [note for note in cs.inspect("m").notes if "vocab.json" in note] == (
        [f"{said}: programs that read vocab.json do not know the other tokens"] if is_said else []
    )
