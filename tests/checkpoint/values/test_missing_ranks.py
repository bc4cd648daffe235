"""A folder of Meta's Llama that lacks the files of other ranks: half of each weight is no model, and this is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values.rank_files import MISSING_RANKS

Run = Callable[..., Any]


def rank(ranks: int, *, words: int = 1, heads: int = 0) -> dict[str, torch.Tensor]:
    """The part of the first rank; ``words`` is the dimension in which the embedding is split."""
    wide = heads or 64
    embedding = (32, 64 // ranks) if words else (32 // ranks, 64)
    state = {"tok_embeddings.weight": embedding, "norm.weight": (64,), "output.weight": (32 // ranks, 64)}
    for layer in range(2):
        state |= {f"layers.{layer}.attention.{name}.weight": (wide // ranks, 64) for name in ("wq", "wk", "wv")}
        state |= {f"layers.{layer}.attention.wo.weight": (64, wide // ranks)}
        state |= {f"layers.{layer}.feed_forward.{name}.weight": (96 // ranks, 64) for name in ("w1", "w3")}
        state |= {f"layers.{layer}.feed_forward.w2.weight": (64, 96 // ranks)}
        state |= {f"layers.{layer}.{name}_norm.weight": (64,) for name in ("attention", "ffn")}
    return {key: torch.randn(shape) for key, shape in state.items()}


def folder(files: int, ranks: int, **how: int) -> str:
    Path("m").mkdir()
    Path("m/params.json").write_text(json.dumps({"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 32}))
    for number in range(files):
        torch.save(rank(ranks, **how), f"m/consolidated.{number:02d}.pth")
    return "m"


@pytest.mark.parametrize("words", [0, 1])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_one_file_of_several_is_noted(ranks: int, words: int, ckpt: Run) -> None:
    path = folder(1, ranks, words=words)
    (said,) = [note for note in cs.inspect(path).notes if MISSING_RANKS in note]
    assert f"{MISSING_RANKS} {ranks}: layers.0.attention.wq.weight has {64 // ranks} rows" in said
    done = ckpt("convert", path, "-o", "out.safetensors")
    assert MISSING_RANKS in " ".join(done.err.split())
    (row,) = [row for row in cs.check(path).rows if row.id == "shard"]
    assert [(str(one.status.value), one.what) for one in row.found] == [("FAIL", said)]


@pytest.mark.parametrize(("files", "ranks", "heads"), [(1, 1, 0), (2, 2, 0), (1, 1, 48), (1, 1, 128)])
def test_whole_models_are_not(files: int, ranks: int, heads: int) -> None:
    path = folder(files, ranks, heads=heads)
    assert not [note for note in cs.inspect(path).notes if MISSING_RANKS in note]
