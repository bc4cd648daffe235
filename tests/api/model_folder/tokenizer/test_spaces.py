"""A tokenizer.json whose steps write spaces otherwise than its tokens have them."""

from __future__ import annotations

import json
from typing import Any

import pytest

import ckptsurgeon as cs

from .test_token_lists import notes, whole

BYTES = ["<unk>", "<s>", "</s>", "a", "Ġa", "Ġb", "Ċ", "Ġc"]
SPACES = ["<unk>", "<s>", "</s>", "a", "▁a", "▁b", "b", "▁c"]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
META = {"type": "Metaspace", "replacement": "▁"}
SPLIT = {"type": "Split", "pattern": {"Regex": "x"}}
LOST = "spaces and non-ASCII characters are lost or become wrong tokens"


@pytest.mark.parametrize(
    ("tokens", "steps", "said"),
    [
        (BYTES, {"pre_tokenizer": LEVEL}, ""),
        (BYTES, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, LEVEL]}}, ""),
        (BYTES, {"normalizer": {"type": "Sequence", "normalizers": [LEVEL]}, "pre_tokenizer": None}, ""),
        (BYTES, {"pre_tokenizer": META}, f"('Ġa', and 2 more), but no step of it is ByteLevel (Metaspace): {LOST}"),
        (BYTES, {"pre_tokenizer": None}, f"('Ġa', and 2 more), but no step of it is ByteLevel (none): {LOST}"),
        (BYTES, {"pre_tokenizer": META, "decoder": LEVEL}, f"no step of it is ByteLevel (Metaspace): {LOST}"),
        ([*BYTES[:-1], "▁c"], {"pre_tokenizer": META}, ""),  # of both kinds
        (SPACES, {"pre_tokenizer": META}, ""),
        (SPACES, {"normalizer": {"type": "Replace"}, "pre_tokenizer": SPLIT}, ""),
        (SPACES, {"pre_tokenizer": LEVEL}, "3 tokens that begin with ▁, but its ByteLevel step writes a space as Ġ"),
        (["a", "b", "c", "Ġ", "e", "▁", "g", "h"], {"pre_tokenizer": META}, ""),  # only the characters themselves
        (BYTES, {}, ""),  # nothing is known of its steps
    ],
)
def test_steps_that_write_spaces_otherwise_are_said(tokens: list[str], steps: dict[str, Any], said: str) -> None:
    whole("m", tokens=tokens, **steps)
    found = [note for note in notes() if "ByteLevel" in note]
    assert len(found) == bool(said)
    assert said in "".join(found)


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(pattern: str, kind: str = "Regex", *, behavior: str = "Removed", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


WORDS = {"type": "WhitespaceSplit"}
OF_CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OF_QWEN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True}
META_NEVER = {**META, "prepend_scheme": "never"}
NOT_CLIP = ["<unk>", "<s>", *(f"w{row}" for row in range(60)), "Ġc"]


@pytest.mark.parametrize(
    ("tokens", "steps", "kind"),
    [
        (BYTES, (WORDS, LEVEL), "WhitespaceSplit"),
        (BYTES, ({"type": "Whitespace"}, LEVEL), "Whitespace"),
        (BYTES, ({"type": "Digits"}, {"type": "BertPreTokenizer"}, LEVEL), "BertPreTokenizer"),
        (BYTES, ({"type": "CharDelimiterSplit", "delimiter": " "}, LEVEL), "CharDelimiterSplit"),
        (BYTES, (split(" ", "String"), LEVEL), "Split"),
        (BYTES, (split(r"\s+"), LEVEL), "Split"),
        (BYTES, (split(OF_CLIP, invert=True), LEVEL), "Split"),
        (SPACES, (WORDS, META_NEVER), "WhitespaceSplit"),
        (SPACES, (WORDS, {**META, "add_prefix_space": False}), "WhitespaceSplit"),
        (BYTES, (LEVEL, WORDS), ""),  # there is no space left
        (BYTES, (WORDS, PREFIXED), ""),
        (BYTES, (WORDS, {"type": "ByteLevel"}), ""),  # it puts a space before each word by default
        (BYTES, (split(" ", "String", behavior="Isolated"), LEVEL), ""),
        (BYTES, (split(" ", "String", behavior="MergedWithNext"), LEVEL), ""),
        (BYTES, (split("SPL1T-TH1S-Pl3A5E", "String"), LEVEL), ""),
        (BYTES, (split(OF_QWEN, invert=True), LEVEL), ""),
        (BYTES, (split(r"[^\r\n]+", invert=True), LEVEL), ""),
        (BYTES, (split(r".+", invert=True), LEVEL), ""),
        (BYTES, (split(r"\n"), LEVEL), ""),
        (BYTES, (WORDS, {"type": "New"}, LEVEL), ""),  # nothing is known of this step
        (NOT_CLIP, (WORDS, LEVEL), ""),  # a list that was made from words, as CLIP's
        (SPACES, (WORDS, {**META, "prepend_scheme": "always"}), ""),
        (SPACES, (WORDS, {**META, "prepend_scheme": "first"}), ""),
        (SPACES, (META_NEVER,), ""),
    ],
)
def test_spaces_that_are_removed_before_they_are_written_are_said(tokens: list[str], steps: Any, kind: str) -> None:
    whole("m", tokens=tokens, pre_tokenizer=sequence(*steps), normalizer=None)
    found = [note for note in notes() if "removes spaces" in note]
    mark = "Ġ" if tokens is BYTES else "▁"
    said = (
        f"the {kind} step of tokenizer.json removes spaces before they are written as {mark}, but its tokens have this"
    )
    assert len(found) == bool(kind)
    assert not kind or (found[0].startswith(said) and found[0].kind.check == "vocabulary")


def test_marks_that_a_normaliser_writes_stay() -> None:
    for normalizer in (LEVEL, {"type": "Replace", "pattern": {"String": " "}, "content": "Ġ"}):
        whole(f"m{normalizer['type']}", tokens=BYTES, normalizer=normalizer, pre_tokenizer=sequence(WORDS, LEVEL))
        assert not [note for note in cs.inspect(f"m{normalizer['type']}").notes if "removes spaces" in note]


@pytest.mark.parametrize("steps", [(WORDS, LEVEL), (split(" ", "String"), LEVEL), (split(OF_CLIP, invert=True), LEVEL)])
def test_tokenizers_removes_them(steps: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {token: row for row, token in enumerate(["a", "b", "Ġ", "Ġb"])}
    model = {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "b"]]}
    for chosen, made in ((steps, ["a", "b"]), (steps[1:], ["a", "Ġb"])):
        whole = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": sequence(*chosen)}
        whole["pre_tokenizer"]["pretokenizers"][-1] = {**LEVEL, "trim_offsets": True, "use_regex": True}
        assert tokenizers.Tokenizer.from_str(json.dumps(whole)).encode("a b").tokens == made
