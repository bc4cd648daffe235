"""A GGUF output whose rows are mapped to new tokens has the tokeniser of these tokens, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.embedded import embedded_model

from .test_differences import document, written
from .test_layouts import read

KEYS = ["token_embd=0", "output=0"]


def tokens(path: str) -> tuple[str, ...]:
    with cs.open_checkpoint(path) as opened:
        found = embedded_model(opened)
        assert found is not None
        return found.tokens


def moved(destination: str, new: str = "b/tokenizer.json") -> Any:
    return cs.transplant("a.gguf", destination, vocab=f"a/tokenizer.json:{new}", vocab_keys=KEYS)


@pytest.fixture(autouse=True)
def files() -> None:
    """Two models in which two tokens have each other's ids."""
    written("a", blocks=None)
    written("b", "a", "b", blocks=None)


@pytest.mark.costly
@pytest.mark.parametrize("destination", ["b.gguf", "a.gguf"])
def test_the_tokens_follow_the_rows(destination: str) -> None:
    cs.apply(moved(destination), "x.gguf")
    assert tokens("x.gguf") == tokens("b.gguf") != tokens("a.gguf")
    assert (
        cs.inspect("x.gguf").metadata["tokenizer.ggml.model"] == cs.inspect("b.gguf").metadata["tokenizer.ggml.model"]
    )
    before, after = read("a.gguf")["token_embd.weight"], read("x.gguf")["token_embd.weight"]
    for row, token in enumerate(tokens("x.gguf")):
        assert torch.equal(after[row], before[tokens("a.gguf").index(token)])


def test_a_list_without_a_tokeniser_is_refused() -> None:
    Path("lists").mkdir()
    Path("lists/new.txt").write_text("".join(f"{token}\n" for token in tokens("b.gguf")))
    with pytest.raises(cs.PlanError, match="no GGUF tokeniser can be made"):
        cs.apply(moved("a.gguf", "lists/new.txt"), "x.gguf")
    assert not Path("x.gguf").exists()
    cs.apply(moved("b.gguf", "lists/new.txt"), "x.gguf")  # the destination has these tokens
    assert tokens("x.gguf") == tokens("b.gguf")


def test_a_merge_by_token_has_the_tokens_of_its_rows() -> None:
    lists = [f"{name}.gguf={name}/tokenizer.json" for name in ("a", "b")]
    given: dict[str, Any] = {"method": "linear", "weights": [1, 1], "tokens": lists, "vocab_keys": KEYS}
    Path("new").mkdir()
    Path("new/tokenizer.json").write_text(json.dumps(document("ab", "Ġa")))
    cs.apply(cs.merge(["a.gguf", "b.gguf"], vocab="base", **given), "base.gguf")
    assert tokens("base.gguf") == tokens("a.gguf")
    cs.apply(cs.merge(["a.gguf", "b.gguf"], vocab="new/tokenizer.json", **given), "x.gguf")
    assert tokens("x.gguf")[3:5] == ("Ġa", "ab")
