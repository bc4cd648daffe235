"""Sizes in the metadata of a GGUF file that are not those of its tensors: inspecting, copying and writing it say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_layouts import MODELS, model
from .test_more_models import KINDS, saved
from .test_tokenizer import splitter, tokenizer

WIDTH, FEW = "llama.embedding_length 64", "llama.attention.head_count_kv"
WRONG = {
    "embedding_length": ("32", "with llama.embedding_length 32, token_embd.weight must have 32 columns, but it has 64"),
    "feed_forward_length": ("95", "with llama.feed_forward_length 95, blk.0.ffn_down.weight must have 95 columns, but it has 96"),
    "attention.head_count": (
        "8", "with llama.attention.head_count 8 and llama.attention.key_length 16, blk.0.attn_q.weight must have 128 rows, but it has 64"
    ),
    "attention.head_count_kv": ("4", f"with {FEW} 4 and llama.attention.value_length 16, blk.0.attn_v.weight must have 64 rows, but it has 32"),
    "attention.key_length": ("8", f"with {FEW} 2 and llama.attention.key_length 8, blk.0.attn_k.weight must have 16 rows, but it has 32"),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("entry", WRONG)
def test_a_size_that_is_another_is_said(entry: str) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    value, said = WRONG[entry]
    plan = cs.convert("x.gguf", metadata={f"llama.{entry}": value})
    assert said in cs.apply(plan, "y.gguf").notes
    for notes in (cs.inspect("y.gguf").notes, cs.convert("y.gguf").notes):
        assert said in notes
    assert cs.check("x.gguf").row("other-notes").status.value == "PASS"
    assert ("WARN", said) in [(one.status.value, one.what) for one in cs.check("y.gguf").row("other-notes").found]


def test_without_the_width_of_a_head_it_follows_from_the_width_of_the_model() -> None:
    model("llama")
    none = {f"llama.attention.{kind}_length": "" for kind in ("key", "value")}
    cs.apply(cs.convert("model", layout="gguf", metadata=none), "x.gguf")
    assert not said_of("x.gguf")
    cs.apply(cs.convert("x.gguf", metadata={FEW: "1"}), "y.gguf")
    made = f"with {WIDTH} and llama.attention.head_count 4 and {FEW} 1, blk.0.attn_"
    assert said_of("y.gguf") == [f"{made}{name}.weight must have 16 rows, but it has 32" for name in "kv"]


@pytest.mark.costly
@pytest.mark.parametrize("blocks", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("name", [*MODELS, *KINDS])
def test_nothing_is_said_of_a_model_as_it_is(name: str, blocks: str | None) -> None:
    model(name) if name in MODELS else saved(name)
    receipt = cs.apply(cs.convert("model", layout="gguf", gguf_type=blocks), "x.gguf")
    assert not [note for note in receipt.notes if " must have " in note]
    assert Path("x.gguf").exists()
    assert not said_of("x.gguf")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is qwen2, but the entries are those of llama"),
        ({"llama.rope.dimension_count": "8"}, "llama.rope.dimension_count is 8, but a head has 16 values"),
    ],
)
def test_entries_with_which_llama_cpp_loads_nothing_are_said(entries: dict[str, str], said: str) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    receipt = cs.apply(cs.convert("x.gguf", metadata=entries), "y.gguf")
    for notes in (receipt.notes, cs.inspect("y.gguf").notes):
        assert f"{said}: llama.cpp cannot load the file" in notes
    row = cs.check("y.gguf").row("other-notes")
    assert ("FAIL", f"{said}: llama.cpp cannot load the file") in [(one.status.value, one.what) for one in row.found]
    assert cs.check("x.gguf").row("other-notes").status.value == "PASS"


def test_an_epsilon_that_is_too_large_is_said() -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.convert("x.gguf", metadata={"llama.attention.layer_norm_rms_epsilon": "1"}), "y.gguf")
    (found,) = cs.check("y.gguf").row("other-notes").found
    assert found.what == "llama.attention.layer_norm_rms_epsilon is 1.0, but epsilons of norms are 0.01 or less"


@pytest.mark.costly
@pytest.mark.parametrize(
    ("entry", "value", "why"),
    [
        ("attention.layer_norm_rms_epsilon", "0", "norms of zeros become NaN"),
        ("attention.layer_norm_rms_epsilon", "-1e-6", "norms of zeros become NaN"),
        ("rope.freq_base", "0", "the rotary embedding becomes NaN"),
        ("rope.freq_base", "nan", "the rotary embedding becomes NaN"),
        ("rope.freq_base", "1000000", ""),
        ("attention.layer_norm_rms_epsilon", "1e-12", ""),
    ],
)
def test_numbers_that_must_be_above_0_are_said(entry: str, value: str, why: str) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    receipt = cs.apply(cs.convert("x.gguf", metadata={f"llama.{entry}": value}), "y.gguf")
    of_check = [one.what for one in cs.check("y.gguf").row("other-notes").found]
    for notes in (receipt.notes, cs.inspect("y.gguf").notes, cs.convert("y.gguf").notes, of_check):
        found = [note for note in notes if "which is not above 0" in note]
        assert len(found) == bool(why), notes
        assert all(note.startswith(f"llama.{entry} is ") and note.endswith(f"above 0: {why}") for note in found)


def test_an_id_beyond_the_tokens_is_said_where_it_is_written() -> None:
    model("llama")
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer(splitter(r"\p{L}+"))))
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert not [note for note in receipt.notes if "the file has" in note]
    receipt = cs.apply(cs.convert("x.gguf", metadata={"tokenizer.ggml.eos_token_id": "9999"}), "y.gguf")
    assert any(note.endswith("but tokenizer.ggml.eos_token_id is 9999") for note in receipt.notes)


def test_an_output_layer_that_is_tied_and_stored_too_is_said_to_be_left_out() -> None:
    tensors = model("llama", tie_word_embeddings=True)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}
    save_file({**tensors, **head}, "model/model.safetensors", {"format": "pt"})
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert any(note.startswith("lm_head.weight is left out, since config.json says") for note in receipt.notes)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar as 64"),
        (
            {"layer_types": ["full_attention"] * 2},
            "entry 0 of layer_types as .full_attention.*computes with .sliding_attention",
        ),
        ({"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]}, ""),
    ],
)
def test_what_llama_cpp_computes_otherwise_for_gemma_2_is_an_error(fields: dict[str, Any], said: str) -> None:
    model("gemma2", **fields)
    if not said:
        cs.convert("model", layout="gguf")
        return
    with pytest.raises(cs.PlanError, match=f"config.json gives {said}"):
        cs.convert("model", layout="gguf")


def said_of(path: str) -> list[str]:
    return [note for note in cs.inspect(path).notes if " must have " in note]
