"""Tensors that keep their layout under a name that means another: kernels and fused projections."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Shapes = dict[str, tuple[int, ...]]


def notes(shapes: Shapes, *rules: str, operations: Any = ()) -> list[str]:
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, "a.pth")
    found = cs.rename("a.pth", map=list(rules), operations=operations).notes
    return [note for note in found if "--operations" in note]


DENSE: Shapes = {f"l.{n}.{leaf}": shape for n in range(2) for leaf, shape in {"kernel": (6, 6), "bias": (6,)}.items()}


def test_a_kernel_that_becomes_a_weight_is_said() -> None:
    (note,) = notes(DENSE, "l.{n}.kernel=l.{n}.weight")
    assert note.startswith("2 tensors become weights without being transposed (l.0.kernel as l.0.weight)")
    assert note.endswith("transpose them with --operations: - {transpose: 'l.*.kernel'}")
    (note,) = notes({"l.0.weight": (6, 4)}, "**.weight=**.kernel")
    assert "1 tensor becomes a kernel without being transposed" in note
    (note,) = notes({"c.kernel": (3, 3, 4, 8)}, "**.kernel=**.weight")
    assert "{permute: 'c.kernel', dims: …}" in note


def test_what_is_transposed_or_has_one_dimension_is_not_said() -> None:
    assert not notes(DENSE, "l.{n}.kernel=l.{n}.weight", operations=[{"transpose": "l.*.kernel"}])
    assert not notes(DENSE, "l=layers")
    assert not notes(DENSE, "**.kernel=**.w")
    assert not notes({"norm.kernel": (6,)}, "**.kernel=**.weight")


@pytest.mark.parametrize("name", ["attn.c_attn", "attn.Wqkv", "attn.in_proj", "attn_qkv", "attn.qkv_proj"])
def test_a_fused_projection_by_head_that_gets_a_name_of_thirds_is_said(name: str) -> None:
    shapes: Shapes = {"h.0.attention.query_key_value.weight": (12, 4), "h.0.attention.query_key_value.bias": (12,)}
    (note,) = notes(shapes, f"h.{{n}}.attention.query_key_value=h.{{n}}.{name}")
    assert note.startswith("2 fused projections may need another order of rows")
    (note,) = notes({f"h.0.{name}.weight": (12, 4)}, f"h.{{n}}.{name}=h.{{n}}.query_key_value")
    assert note.startswith("1 fused projection may need")


def test_a_fused_projection_that_is_reordered_or_keeps_its_name_is_not_said() -> None:
    key = "h.{n}.attention.query_key_value"
    shapes: Shapes = {"h.0.attention.query_key_value.weight": (12, 4)}
    assert not notes(shapes, "h=layers")
    reorder = [
        {"reshape": f"{key}.weight", "shape": [2, 3, 2, 4]}, {"permute": f"{key}.weight", "dims": [1, 0, 2, 3]},
        {"reshape": f"{key}.weight", "shape": [12, 4]},
    ]  # fmt: skip
    assert not notes(shapes, f"{key}=h.{{n}}.attn.c_attn", operations=reorder)


def test_match_says_it_too() -> None:
    for name, key in (("a.pth", "h.{}.attention.query_key_value"), ("b.pth", "layers.{}.attn.c_attn")):
        torch.save({f"{key.format(n)}.weight": torch.zeros(12, 4) for n in range(3)}, name)
    found = cs.match("a.pth", "b.pth")
    assert len(found.names) == 3
    assert any("3 fused projections may need another order of rows" in note for note in found.notes)
