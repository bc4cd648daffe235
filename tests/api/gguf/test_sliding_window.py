"""A sliding window that llama.cpp does not read is said; one that has no effect, or that it reads, is not."""

from __future__ import annotations

from typing import Any

import pytest

import ckptsurgeon as cs

from .test_layouts import model

KINDS = ["full_attention", "sliding_attention"]
SWITCHED: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"max_position_embeddings": 32768}),
        ("qwen2", {"sliding_window": 8, **SWITCHED}),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "layer_types": KINDS}),
    ],
)
def test_a_window_that_llama_cpp_does_not_read_is_said(model_type: str, fields: dict[str, Any]) -> None:
    model(model_type, **fields)
    window = fields.get("sliding_window", 4096)
    note = f"llama.cpp computes without the sliding_window of {window:,} tokens in config.json"
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert [one for one in receipt.notes if one.startswith(note)]
    assert not [key for key in cs.inspect("x.gguf").metadata if key.endswith("sliding_window")]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mistral", {}),
        ("mistral", {"sliding_window": None, "max_position_embeddings": 32768}),
        ("mistral", {"sliding_window": 128}),
        ("llama", {"max_position_embeddings": 32768}),
        ("qwen2", {"sliding_window": 8, **SWITCHED, "use_sliding_window": False}),
        ("qwen2", {"sliding_window": 8, **SWITCHED, "max_window_layers": 2}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "layer_types": KINDS[:1] * 2}),
        ("gemma2", {"sliding_window": 8}),
    ],
)
def test_a_window_without_effect_or_that_is_written_is_not_said(model_type: str, fields: dict[str, Any]) -> None:
    model(model_type, **fields)
    assert not [one for one in cs.convert("model", layout="gguf").notes if "sliding_window" in one]
