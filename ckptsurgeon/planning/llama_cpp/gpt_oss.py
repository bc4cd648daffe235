"""The experts of gpt-oss: transformers has one matrix for gate and up, whose columns alternate; llama.cpp has two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .regrouping import Regrouping

__all__ = ["CODED", "STACKED", "joined_experts", "split_experts"]

EXPERTS = "model.layers.{n}.mlp.experts"
BOTH, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
GATE, UP = "blk.{n}.ffn_gate_exps", "blk.{n}.ffn_up_exps"
DOWN_THERE = "blk.{n}.ffn_down_exps"
CODED = tuple(f"model.layers.*.mlp.experts.*_{end}" for end in ("blocks", "scales"))
"""Patterns of the experts' codes and exponents (mxfp4) in the checkpoints that OpenAI published."""
STACKED = (f"{GATE}.weight", f"{UP}.weight", DOWN)
"""The matrices of the experts after ``split_experts``, before tensors are renamed."""
Operations = Iterator[Mapping[str, Any]]


def split_experts(experts: int, width: int, inner: int) -> Regrouping:
    """Return the operations that split gate and up into separate matrices, (experts, out, in).

    ``width`` is the model's width, ``inner`` the width inside an expert. All matrices are transposed first, so that
    their rows are the rows of the stored codes.
    """
    turned = tuple({"permute": key, "dims": [0, 2, 1]} for key in (BOTH, DOWN))
    return Regrouping((*turned, *_split(experts, width, inner)), (BOTH, f"{BOTH}_bias"))


def _split(experts: int, width: int, inner: int) -> Operations:
    for key, end, row in ((BOTH, "weight", [width]), (f"{BOTH}_bias", "bias", [])):
        into = [f"{name}.{end}" for name in (GATE, UP)]
        yield {"reshape": key, "shape": [experts, inner, 2, *row]}
        yield {"split": key, "into": into, "dim": 2}
        yield from ({"reshape": one, "shape": [experts, inner, *row]} for one in into)


def joined_experts(experts: int, width: int, inner: int) -> Regrouping:
    """Return the operations that join gate and up into one matrix, as in transformers."""
    taken = tuple(f"{name}.{end}" for name in (GATE, UP) for end in ("weight", "bias"))
    turned = tuple({"permute": key, "dims": [0, 2, 1]} for key in (BOTH, f"{DOWN_THERE}.weight"))
    return Regrouping((*_joined(experts, width, inner), *turned), taken)


def _joined(experts: int, width: int, inner: int) -> Operations:
    for key, end, row in ((BOTH, "weight", [width]), (f"{BOTH}_bias", "bias", [])):
        parts = [f"{name}.{end}" for name in (GATE, UP)]
        yield from ({"reshape": one, "shape": [experts, inner, 1, *row]} for one in parts)
        yield {"concat": parts, "into": key, "dim": 2}
        yield {"reshape": key, "shape": [experts, 2 * inner, *row]}
