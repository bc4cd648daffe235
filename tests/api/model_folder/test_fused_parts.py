"""Operations that take the parts of a fused projection for other parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

QKV, GATE_UP = "l.{n}.self_attn.qkv_proj", "l.{n}.mlp.gate_up_proj"


def notes(plan: Any) -> list[str]:
    return [note for note in plan.notes if "means the order" in note]


def save(path: str, *modules: str, rows: int = 8) -> None:
    torch.save({f"{module.format(n=n)}.weight": torch.randn(rows, 4) for module in modules for n in range(2)}, path)


def split(fused: str, names: Sequence[str], *sizes: int) -> dict[str, Any]:
    module = fused.rpartition(".")[0]
    return {"split": fused, "into": [f"{module}.{name}" for name in names], "sizes": list(sizes)}


def join(fused: str, names: Sequence[str]) -> dict[str, Any]:
    module = fused.rpartition(".")[0]
    return {"concat": [f"{module}.{name}.weight" for name in names], "into": f"{fused}.weight"}


@pytest.mark.parametrize("names", [("q_proj", "v_proj", "k_proj"), ("wk", "wv", "wq"), ("query", "value", "key")])
def test_queries_keys_and_values_in_another_order_are_noted(names: Sequence[str]) -> None:
    save("a.pth", QKV)
    (note,) = notes(cs.rename("a.pth", operations=[split(QKV, names, 4, 2, 2)]))
    assert note.startswith("the operation split l.{n}.self_attn.qkv_proj makes ")
    assert "but the name l.0.self_attn.qkv_proj.weight means the order q, k, v (2 fused projections)" in note


def test_up_before_gate_is_noted() -> None:
    save("a.pth", GATE_UP)
    (note,) = notes(cs.rename("a.pth", operations=[split(GATE_UP, ("up_proj", "gate_proj"), 4, 4)]))
    assert "makes up, gate, but the name l.0.mlp.gate_up_proj.weight means the order gate, up" in note
    assert not notes(cs.rename("a.pth", operations=[split(GATE_UP, ("gate_proj", "up_proj"), 4, 4)]))


def test_a_transplant_says_it_too_and_reads_the_names_after_the_rules() -> None:
    save("a.pth", QKV)
    save("b.pth", "l.{n}.self_attn.q_proj", rows=4)
    save("c.pth", "l.{n}.self_attn.k_proj", "l.{n}.self_attn.v_proj", rows=2)
    torch.save(torch.load("b.pth") | torch.load("c.pth"), "b.pth")
    rules = [
        f"l.{{n}}.self_attn.{letter}=l.{{n}}.self_attn.{name}_proj" for letter, name in zip("abc", "qvk", strict=True)
    ]
    (note,) = notes(cs.transplant("a.pth", "b.pth", map=rules, operations=[split(QKV, "abc", 4, 2, 2)]))
    assert "makes q, v, k" in note
    rules = [rule.replace("v_proj", "x").replace("k_proj", "v_proj").replace("x", "k_proj") for rule in rules]
    assert not notes(cs.transplant("a.pth", "b.pth", map=rules, operations=[split(QKV, "abc", 4, 2, 2)]))


def test_parts_that_are_joined_in_another_order_are_noted() -> None:
    parts = ("q_proj", "k_proj", "v_proj")
    save("a.pth", *(f"l.{{n}}.self_attn.{name}" for name in parts))
    assert not notes(cs.rename("a.pth", operations=[join(QKV, parts)]))
    (note,) = notes(cs.rename("a.pth", operations=[join(QKV, (*parts[1:], parts[0]))]))
    assert "joins k, v, q, but the name l.0.self_attn.qkv_proj.weight means the order q, k, v" in note


def test_the_usual_order_codegen_s_and_unknown_names_are_not_said() -> None:
    save("a.pth", QKV)
    assert not notes(cs.rename("a.pth", operations=[split(QKV, ("q_proj", "k_proj", "v_proj"), 4, 2, 2)]))
    assert not notes(cs.rename("a.pth", operations=[split(QKV, ("first", "v_proj", "third"), 4, 2, 2)]))
    codegen = "transformer.h.{n}.attn.qkv_proj"
    save("a.pth", codegen)
    assert not notes(cs.rename("a.pth", operations=[split(codegen, ("q_proj", "v_proj", "k_proj"), 4, 2, 2)]))


def test_heads_one_after_another_are_read_by_their_first_rows() -> None:
    key = "h.{n}.attention.query_key_value"
    save("a.pth", key, rows=12)
    operations: list[dict[str, Any]] = [
        {"reshape": f"{key}.weight", "shape": [2, 3, 2, 4]}, {"permute": f"{key}.weight", "dims": [1, 0, 2, 3]},
        {"reshape": f"{key}.weight", "shape": [12, 4]},
    ]  # fmt: skip
    assert not notes(cs.rename("a.pth", operations=[*operations, split(key, ("q_proj", "k_proj", "v_proj"), 4, 4, 4)]))
    (note,) = notes(cs.rename("a.pth", operations=[*operations, split(key, ("v_proj", "k_proj", "q_proj"), 4, 4, 4)]))
    assert "makes v, k, q" in note


def test_blocks_of_a_projection_with_one_head_after_another_are_noted() -> None:
    key, parts = "h.{n}.attention.query_key_value", ("q_proj", "k_proj", "v_proj")
    Path("neox").mkdir()
    save("neox/pytorch_model.bin", key, rows=12)
    config = {"model_type": "gpt_neox", "num_attention_heads": 2}
    Path("neox/config.json").write_text(json.dumps(config))
    blocks = [split(key, parts, 4, 4, 4)]
    (note,) = said(cs.rename("neox", operations=blocks))
    assert note.startswith("6 tensors are blocks of the rows of query_key_value (h.0.attention.q_proj.weight)")
    by_head = [
        {"reshape": f"{key}.weight", "shape": [2, 3, 2, 4]}, {**blocks[0], "dim": 1, "sizes": [1, 1, 1]},
        *({"reshape": f"h.{{n}}.attention.{name}.weight", "shape": [4, 4]} for name in parts),
    ]  # fmt: skip
    assert not said(cs.rename("neox", operations=by_head))
    for other in ({"num_attention_heads": 1}, {"model_type": "chatglm"}):
        Path("neox/config.json").write_text(json.dumps(config | other))
        assert not said(cs.rename("neox", operations=blocks))


def said(plan: Any) -> list[str]:
    return [note for note in plan.notes if "blocks of the rows" in note]
