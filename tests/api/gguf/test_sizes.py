"""Sizes in the metadata of a GGUF file that are not those of its tensors: inspecting, copying and writing it say so."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs

from .test_layouts import MODELS, model
from .test_more_models import KINDS, saved

WIDTH, FEW = "llama.embedding_length 64", "llama.attention.head_count_kv"
WRONG = {
    "embedding_length": ("32", "llama.embedding_length 32 make 32 columns of token_embd.weight, but it has 64"),
    "feed_forward_length": ("95", "llama.feed_forward_length 95 make 95 columns of blk.0.ffn_down.weight, but it has 96"),
    "attention.head_count": (
        "8", "llama.attention.head_count 8 and llama.attention.key_length 16 make 128 rows of blk.0.attn_q.weight, but it has 64"
    ),
    "attention.head_count_kv": ("4", f"{FEW} 4 and llama.attention.value_length 16 make 64 rows of blk.0.attn_v.weight, but it has 32"),
    "attention.key_length": ("8", f"{FEW} 2 and llama.attention.key_length 8 make 16 rows of blk.0.attn_k.weight, but it has 32"),
}  # fmt: skip


@pytest.mark.parametrize("entry", WRONG)
def test_a_size_that_is_another_is_said(entry: str) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    value, said = WRONG[entry]
    plan = cs.convert("x.gguf", metadata={f"llama.{entry}": value})
    assert said in cs.apply(plan, "y.gguf").notes
    for notes in (cs.inspect("y.gguf").notes, cs.convert("y.gguf").notes):
        assert said in notes


def test_without_the_width_of_a_head_it_follows_from_the_width_of_the_model() -> None:
    model("llama")
    none = {f"llama.attention.{kind}_length": "" for kind in ("key", "value")}
    cs.apply(cs.convert("model", layout="gguf", metadata=none), "x.gguf")
    assert not said_of("x.gguf")
    cs.apply(cs.convert("x.gguf", metadata={FEW: "1"}), "y.gguf")
    made = f"{WIDTH} and llama.attention.head_count 4 and {FEW} 1 make 16 rows of blk.0.attn_"
    assert said_of("y.gguf") == [f"{made}{name}.weight, but it has 32" for name in "kv"]


@pytest.mark.parametrize("blocks", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("name", [*MODELS, *KINDS])
def test_nothing_is_said_of_a_model_as_it_is(name: str, blocks: str | None) -> None:
    model(name) if name in MODELS else saved(name)
    receipt = cs.apply(cs.convert("model", layout="gguf", gguf_type=blocks), "x.gguf")
    assert not [note for note in receipt.notes if " make " in note]
    assert Path("x.gguf").exists()
    assert not said_of("x.gguf")


def said_of(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if " make " in note]
