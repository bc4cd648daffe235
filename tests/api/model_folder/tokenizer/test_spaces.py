"""A tokenizer.json whose steps write spaces otherwise than its tokens have them."""

from __future__ import annotations

from typing import Any

import pytest

from .test_token_lists import notes, whole

BYTES = ["<unk>", "<s>", "</s>", "a", "Ġa", "Ġb", "Ċ", "Ġc"]
SPACES = ["<unk>", "<s>", "</s>", "a", "▁a", "▁b", "b", "▁c"]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
META = {"type": "Metaspace", "replacement": "▁"}
SPLIT = {"type": "Split", "pattern": {"Regex": "x"}}
LOST = "spaces and other characters are lost or become wrong tokens"


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
