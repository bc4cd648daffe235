"""Huge numbers in headers, indexes, configurations and keys are findings, and take no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.shards import index_facts

from .models import INDEX, header_of, with_header

ONLY = "model-00001-of-00001.safetensors"
SHAPES = ([2**40] * 400, [2**40] * 400_000, [0, *[2**40] * 400_000], [2**40] * 64, [0, 2**40, 2**40])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{len(shape)}-{shape[0]}")
def test_a_shape_that_no_tensor_has_is_named(shape: list[int], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(2, np.float32)}, path)
    header, body = header_of(path)
    header["b"] = {"dtype": "F32", "shape": shape, "data_offsets": [8, 16]}
    with_header(path, header, body + bytes(8))
    (found,) = cs.check(path).row("offsets").found
    is_long = len(shape) > 64
    said = "has an invalid shape or invalid offsets" if is_long else "has too many elements"
    assert found.what.endswith(said)
    with pytest.raises(cs.FormatError):
        cs.inspect(path)


@pytest.mark.parametrize("total", [10**400, 1e300, float("inf"), True], ids=("digits", "large", "infinite", "true"))
def test_a_total_that_no_int64_holds_is_none(total: float) -> None:
    document = json.dumps({"metadata": {"total_size": total}, "weight_map": {"a": "x.safetensors"}})
    facts = index_facts("model.safetensors.index.json", document.encode())
    assert facts is None or facts.total is None


def test_a_total_that_no_int64_holds_is_named(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / ONLY)
    index = {"metadata": {"total_size": 10**400}, "weight_map": {"a": ONLY}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    found = cs.check(tmp_path / INDEX).row("index-total").found
    assert [one.what for one in found] == [
        f"{INDEX} has a total_size that is not a number of bytes; the tensors have 8 bytes"
    ]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("model.layers.0.self_attn.o_proj.weight",
         {"model_type": "phi3", "num_attention_heads": 10**2200, "head_dim": 10**2200, "hidden_size": 4}),
        ("vit.embeddings.position_embeddings",
         {"model_type": "vit", "image_size": 10**2200, "patch_size": 1, "hidden_size": 4}),
    ],
)  # fmt: skip
def test_sizes_of_thousands_of_digits_are_no_crash(key: str, config: dict[str, Any], tmp_path: Path) -> None:
    save_file({key: np.zeros((1, 4), np.float32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cs.check(tmp_path).rows
    assert cs.inspect(tmp_path).notes is not None
