"""Parts of quantised tensors that a cast of all tensors gave a dtype that loaders do not accept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.four_bits import FOUR_BITS
from ..helpers.quantised import IN, LAYERS, OUT, Quantised
from ..helpers.zoo import BY_NAME

SAID = "accepts only"
PARTS = [
    ("bnb-nf4-sound", "absmax", "float32 or uint8"), ("bnb-fp4-sound", "quant_map", "float32"),
    ("bnb-nf4-nested", "nested_absmax", "float32"), ("bnb-fp4-nested", "nested_quant_map", "float32"),
    ("bnb-nf4-nested", "absmax", "uint8"),
]  # fmt: skip


def cast(model: Quantised, end: str, dtype: torch.dtype) -> Quantised:
    def store(draw: torch.Generator) -> dict[str, torch.Tensor]:
        state = model.store(draw)
        return {**state, end: state[end].to(dtype).clone()}

    return replace(model, store=store)


def said(notes: Any) -> list[str]:
    return [one for one in notes if SAID in one]


@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("name", "part", "wanted"), PARTS)
def test_scales_and_tables_of_bitsandbytes(name: str, part: str, wanted: str, dtype: str, tmp_path: Path) -> None:
    folder = cast(FOUR_BITS[name], f".weight.{part}", getattr(torch, dtype)).folder(tmp_path / "m")
    (note,) = said(cs.inspect(folder).notes)
    assert f"2 quantised tensors have {part} in {dtype}, but bitsandbytes accepts only {wanted}: " in note
    assert note in cs.convert(folder).notes
    (found,) = [one for one in cs.check(folder).row("quantisation").found if SAID in one.what]
    assert found.status.name == "WARN"


@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_weight_shape_of_floats(dtype: str, tmp_path: Path) -> None:
    folder = cast(BY_NAME["int4-packed"], ".weight_shape", getattr(torch, dtype)).folder(tmp_path / "m")
    (note,) = said(cs.inspect(folder).notes)
    assert f"have weight_shape in {dtype}, but compressed-tensors accepts only int64 or int32: " in note
    (found,) = [one for one in cs.check(folder).row("quantisation").found if SAID in one.what]
    assert found.status.name == "FAIL"
    assert note in cs.convert(folder).notes
    other = BY_NAME["int4-packed"].folder(tmp_path / "other", 1)
    cs.apply(cs.average([folder, other]), tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    shapes = [one for key, one in made.items() if key.endswith("weight_shape")]
    assert [(one.dtype, one.tolist()) for one in shapes] == [(torch.int64, [OUT, IN])] * len(LAYERS)
    assert not said(cs.inspect(tmp_path / "out").notes)


def test_a_weight_shape_of_floats_that_may_be_rounded_is_refused(tmp_path: Path) -> None:
    model = BY_NAME["int4-packed"]
    shape = torch.tensor([OUT, IN - 3.0], dtype=torch.bfloat16)
    folder = replace(model, store=lambda g: {**model.store(g), ".weight_shape": shape.clone()}).folder(tmp_path / "m")
    with pytest.raises(
        cs.CheckpointError, match="the weight_shape is bfloat16, not int64 or int32: these sizes may be rounded"
    ):
        cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("weight_scale", "from which no weights can be decoded"),
        ("input_scale", "although scales of activations are fractions"),
    ],
)
def test_scales_of_integers(end: str, why: str, tmp_path: Path) -> None:
    state = {
        f"layers.{layer}.fc.{name}": value
        for layer in range(3)
        for name, value in {
            "weight": torch.ones(16, 16).to(torch.float8_e4m3fn), "weight_scale": torch.ones(1),
            "input_scale": torch.ones(1), end: torch.ones(1, dtype=torch.int32),
        }.items()
    }  # fmt: skip
    save_file(state, tmp_path / "x.safetensors")
    (note,) = [one for one in cs.inspect(tmp_path / "x.safetensors").notes if "integers as" in one]
    assert f"3 quantised tensors have integers as {end} (int32), {why}: layers.0.fc.weight" in note


@pytest.mark.parametrize("model", FOUR_BITS.values(), ids=lambda one: one.name)
def test_parts_with_their_own_dtypes_are_not(model: Quantised, tmp_path: Path) -> None:
    assert said(cs.inspect(model.folder(tmp_path / "m")).notes) == []
