"""Tokens that the pre-tokeniser of tokenizer.json splits, and how ckpt splits texts compared with tokenizers."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.pre_tokenizers.patterns import translated
from ckptsurgeon.api.model_folder.pre_tokenizers.steps import steps_of

from ..test_model_folders import model

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(expression: str, behaviour: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behaviour, "invert": invert}


def chain(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
PIECES = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
PUBLISHED = {
    "gpt2": GPT2,
    "llama3": chain(split(CL100K % "{1,3}"), BYTES),
    "qwen2": chain(split(CL100K % ""), BYTES),
    "tekken": chain(split(TEKKEN), BYTES),
    "deepseek": chain(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), BYTES),
    "starcoder": chain(DIGITS, GPT2),
    "falcon": chain({"type": "Punctuation", "behavior": "Contiguous"}, GPT2, {**DIGITS, "individual_digits": False},
                    split("[0-9][0-9][0-9]")),
    "clip": chain(split(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", "Removed", invert=True), BYTES),
    "t5": PIECES,
    "xlmr": chain({"type": "WhitespaceSplit"}, PIECES),
    "gemma": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    "next": {"type": "Split", "pattern": {"String": "-"}, "behavior": "MergedWithNext", "invert": False},
    "bert": {"type": "BertPreTokenizer"},
    "words": chain({"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"}),
}  # fmt: skip


def texts() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("aBc 12.'s-", k=draw.randint(1, 10))) for _ in range(300)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_texts_are_split_as_tokenizers_does(name: str) -> None:
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": PUBLISHED[name]}
    whole = json.loads(Tokenizer(models.BPE()).to_str())
    theirs = Tokenizer.from_str(json.dumps({**whole, **document})).pre_tokenizer
    steps = steps_of(PUBLISHED[name])
    assert steps
    for text in texts():
        pieces = [text]
        for step in steps:
            pieces = [one for piece in pieces for one in step(piece) if one]
        assert pieces == [piece for piece, _ in theirs.pre_tokenize_str(text)], text


@pytest.mark.parametrize(
    "expression",
    ["(a+)+", "(?:a|b)*c", "a*a*a*a*a*a*", "[a[b]]", "[a&&b]", r"\p{Han}", r"\1", "(?<n>a)", "(?i)a", "(", "[", "\\",
     "|" * 40, "a" * 20_000, "[]a]", "*", r"\x41", "a{2,1}"],
)  # fmt: skip
def test_expressions_that_could_take_long_or_are_not_known_are_refused(expression: str) -> None:
    assert translated(expression) is None
    assert steps_of(split(expression)) is None


@pytest.mark.parametrize("step", [None, [], {}, {"type": "Other"}, chain({"type": "Split"}), {"type": "Sequence"},
                                  split("a", "Other"), {"type": "Split", "pattern": {"String": ""}},
                                  {**PIECES, "replacement": "_"}])  # fmt: skip
def test_steps_that_are_not_known_are_none(step: Any) -> None:
    assert steps_of(step) is None


def folder(step: Any, tokens: list[str], kind: str = "BPE") -> list[str]:
    listed = ["<unk>", *tokens]
    vocabulary: Any = {token: row for row, token in enumerate(listed)}
    vocabulary = [[token, -1.0] for token in listed] if kind == "Unigram" else vocabulary
    document = {"added_tokens": [], "pre_tokenizer": step, "model": {"type": kind, "vocab": vocabulary, "merges": []}}
    model("m", tokens=listed, eos_token_id=None, pad_token_id=None)
    Path("m/tokenizer.json").write_text(json.dumps(document))
    found = [one for one in cs.inspect("m").notes if one.startswith("the pre_tokenizer of")]
    assert [one for one in cs.convert("m").notes if one.startswith("the pre_tokenizer of")] == found
    assert all(one.kind.check == "vocabulary" for one in found)
    return found


WORDS = [f"{space}{one}{two}" for one, two in product("abcd", "ef") for space in ("Ġ", "")]
NUMBERS = [f"{one}{two}" for one, two in product("123", "456")]
SPACED = [f"Ġ{one}" for one in range(1, 10)]
OF_SIGNS = ["Ġ(", "Ġ-", 'Ġ"', "Ġ=", "Ġ/", "Ġ*", "Ġ<", "Ġ+", "Ġ$"]
SAID = "the pre_tokenizer of tokenizer.json splits {}: the tokeniser never produces them, so perhaps it is the {}"


@pytest.mark.parametrize(
    ("name", "tokens", "said"),
    [
        ("qwen2", [*WORDS, *NUMBERS, *SPACED], "18 of 18 tokens of several digits, of a space with digits, such as '14', 'Ġ1'"),
        ("starcoder", [*WORDS, *NUMBERS], "9 of 9 tokens of several digits, such as '14'"),
        ("llama3", [*WORDS, *NUMBERS, *SPACED], "9 of 9 tokens of a space with digits, such as 'Ġ1'"),
        ("falcon", [*WORDS, *OF_SIGNS], "9 of 9 tokens of a space with punctuation, such as 'Ġ('"),
        ("gpt2", [*WORDS, *NUMBERS, *SPACED, *OF_SIGNS], ""),
        ("llama3", [*WORDS, *NUMBERS, *OF_SIGNS], ""),
        ("tekken", [*WORDS, *OF_SIGNS], ""),
        ("deepseek", [*WORDS, *NUMBERS, *OF_SIGNS], ""),
        ("qwen2", [*WORDS, *NUMBERS[:7]], ""),  # too few to judge
        ("qwen2", [*WORDS, *NUMBERS, *(f"{one}" for one in range(7))], "9 of 9 tokens of several digits, such as '14'"),
        ("words", [*WORDS, *NUMBERS], ""),  # no list of byte-level BPE
    ],
)  # fmt: skip
def test_tokens_that_are_always_split_are_said(name: str, tokens: list[str], said: str) -> None:
    found = folder(PUBLISHED[name], tokens)
    assert found == ([SAID.format(said, "pre_tokenizer of another model")] if said else [])


def test_a_few_split_tokens_are_not_said() -> None:
    """GPT-2's pre-tokeniser keeps 3 of 4 kinds of numbers, and that of Llama 3 splits those of four digits."""
    assert not folder(PUBLISHED["llama3"], [*WORDS, *NUMBERS, *(f"19{one}" for one in NUMBERS[:8])])


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize(("steps", "is_said"), [((PIECES,), False), ((DIGITS, PIECES), True)])
def test_digits_of_a_sentencepiece_list_are_said(kind: str, steps: tuple[dict[str, Any], ...], is_said: bool) -> None:
    tokens = [one.replace("Ġ", "▁") for one in (*WORDS, *NUMBERS)]
    assert bool(folder(chain(*steps), tokens, kind)) == is_said


def test_only_a_part_of_many_tokens_is_tried() -> None:
    (note,) = folder(PUBLISHED["qwen2"], [*WORDS, *map(str, range(100, 1000))])
    assert note.startswith("the pre_tokenizer of tokenizer.json splits 113 of 113 tried tokens of several digits")
