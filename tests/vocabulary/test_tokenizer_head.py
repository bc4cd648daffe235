"""The sections of a tokenizer.json are read in any order; the long list of tokens is not read if it comes last."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from ckptsurgeon.vocabulary.tokenizer_head import tokenizer_head

HEAD = {"added_tokens": [{"id": 0, "content": "model"}], "normalizer": {"type": "NFC"}, "post_processor": None}
MODEL = {"model": {"type": "BPE", "vocab": {"a": 0, "decoder": 1}, "merges": []}}


@pytest.mark.parametrize("names", list(permutations([*HEAD, *MODEL])), ids=" ".join)
def test_sections_are_found_in_any_order(names: tuple[str, ...]) -> None:
    document = {name: (HEAD | MODEL)[name] for name in names}
    assert tokenizer_head(json.dumps(document).encode()) == HEAD
    assert tokenizer_head(json.dumps(document, indent=1).encode()) == HEAD


def test_a_list_of_tokens_that_comes_last_is_not_read() -> None:
    text = json.dumps(HEAD)[:-1] + ', "model": {"vocab": {"a": 0, and so on'
    assert tokenizer_head(text.encode()) == HEAD


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model"', "\xff"])
def test_a_file_that_cannot_be_read_has_no_sections(text: str) -> None:
    assert tokenizer_head(text.encode("latin-1")) == {}
