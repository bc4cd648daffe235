"""torchao's tensors in safetensors: the metadata tell their class, and what is written says that they are plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError


def entry(kind: str, **fields: Any) -> str:
    return json.dumps({"_type": kind, "_data": fields, "_tensor_data_names": ["qdata", "scale"]})


def saved(path: Path, entries: dict[str, str], **more: torch.Tensor) -> Path:
    """A file with two layers of int8 in one scale a row, and a bias."""
    state = {"bias": torch.ones(4)}
    for number in (0, 1):
        state[f"{number}._weight_qdata"] = torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8)
        state[f"{number}._weight_scale"] = torch.full((4, 1), 0.5)
    metadata = {**entries, "bias": entry("Tensor"), "tensor_names": json.dumps(["0.weight", "1.weight", "bias"])}
    save_file({**state, **more}, path, metadata)
    return path


BOTH = {f"{number}.weight": entry("Int8Tensor", block_size=[1, 8]) for number in (0, 1)}
WEIGHT = torch.arange(-16, 16).reshape(4, 8) / 2


def test_a_decoded_weight_is_a_plain_tensor_in_the_metadata(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    cs.apply(cs.convert(saved(tmp_path / "a.safetensors", BOTH), dtype="float32", dequantize=True), out)
    found = load_file(out)
    assert found.keys() == {"0.weight", "1.weight", "bias"}
    assert torch.equal(found["0.weight"], WEIGHT)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert [json.loads(metadata[key])["_type"] for key in found] == ["Tensor"] * 3
    assert cs.verify(out).ok


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ({}, "does not say of which class of torchao it is"),
        ({"0.weight": "[", "1.weight": "[]"}, "does not say of which class of torchao it is"),
        ({"0.weight": entry("Int4Tensor"), "1.weight": entry("Int4Tensor")}, "no decoder knows the Int4Tensor"),
        ({key: entry("MXTensor", is_swizzled_scales=True) for key in BOTH}, "the order of a GPU's kernels"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(described: dict[str, str], why: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"0\.weight .* cannot be decoded: .*{why}"):
        cs.convert(saved(tmp_path / "a.safetensors", described), dtype="float32", dequantize=True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"0._weight_act_pre_scale": torch.ones(8)}, "the inputs of its layer are scaled"),
        ({"0._weight_zero_point": torch.zeros(4, 2, dtype=torch.int8)}, "zero points are of another shape"),
        ({"0._weight_scale": torch.ones(3, 1)}, r"its scales have the shape \[3, 1\]"),
        ({"0._weight_scale": torch.ones(4)}, r"its scales have the shape \[4\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(more: dict[str, torch.Tensor], why: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=why):
        cs.convert(saved(tmp_path / "a.safetensors", BOTH, **more), dtype="float32", dequantize=True)
