"""Tensors of one kind of numbers in most layers and of another in one: noted if no scales explain them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"


def model(changed: dict[str, torch.Tensor], **config: Any) -> None:
    """Write a folder of three layers of bfloat16 in which some tensors are others."""
    Path("m").mkdir()
    state = {f"model.layers.{i}.mlp.up_proj.weight": torch.ones(8, 8) for i in range(3)}
    state |= {f"model.layers.{i}.input_layernorm.weight": torch.ones(8) for i in range(3)}
    state |= {"model.embed_tokens.weight": torch.ones(16, 8), "model.norm.weight": torch.ones(8)}
    save_file({key: one.bfloat16() for key, one in state.items()} | changed, "m/model.safetensors")
    fields = {"model_type": "llama", "num_hidden_layers": 3, **config}
    Path("m/config.json").write_text(json.dumps(fields))


def notes() -> list[str]:
    return [note for note in cs.inspect("m").notes if "are normally float16" in note]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.bool, torch.float64])
def test_a_layer_of_another_kind_is_noted(dtype: torch.dtype) -> None:
    model({UP: torch.ones(8, 8).to(dtype)})
    (note,) = notes()
    name = str(dtype).removeprefix("torch.")
    begin, _, end = note.partition(", but model.layers.")
    assert begin == f"{UP} is {name}"
    assert end[1:].startswith(".mlp.up_proj.weight is bfloat16: the weights of a model")
    assert note.endswith("are normally float16, bfloat16 or float32")


def test_so_is_a_norm_and_the_first_layer() -> None:
    model({NORM: torch.ones(8).bool(), UP.replace("1", "0"): torch.ones(8, 8).int()})
    (note,) = notes()
    assert "layers.0.mlp.up_proj.weight is int32" in note
    assert note.endswith("; 1 other tensor too")


def test_so_is_a_weight_outside_the_layers() -> None:
    model({"model.embed_tokens.weight": torch.ones(16, 8).int()})
    (note,) = notes()
    assert note.startswith("model.embed_tokens.weight is int32, but ")


def test_convert_notes_it_too() -> None:
    model({UP: torch.ones(8, 8).int()})
    plan = cs.convert("m")
    assert any("is int32" in note for note in (*plan.notes, *plan.target.notes))


def test_codes_with_scales_buffers_and_settings_are_not() -> None:
    model({UP: torch.ones(8, 8).to(torch.int8), UP.replace("weight", "weight_scale"): torch.ones(8, 1)})
    assert not notes()
    masks = {f"model.layers.{i}.attn.bias": torch.ones(1, 1, 4, 4).bool() for i in range(3)}
    save_file({**masks, "model.layers.0.n": torch.tensor(1)}, "m/model.safetensors")
    assert not notes()


def test_nor_is_a_quantised_model() -> None:
    model({UP: torch.ones(8, 8).to(torch.int8)}, quantization_config={"quant_method": "other"})
    assert not notes()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_layer_of_eight_bit_floats_without_scales_is_noted(dtype: torch.dtype) -> None:
    model({UP: torch.ones(8, 8).to(dtype)})
    (note,) = notes()
    assert note.startswith(f"{UP} is {str(dtype).removeprefix('torch.')}, but ")
    assert note.endswith(
        "are normally float16, bfloat16 or float32, and 8-bit floats without scales are read as numbers"
    )


def test_a_model_of_eight_bit_floats_alone_is_not() -> None:
    model({f"model.layers.{i}.mlp.up_proj.weight": torch.ones(8, 8).to(torch.float8_e4m3fn) for i in range(3)})
    assert not notes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_of_another_dtype_is_said_to_be_from_another_copy(dtype: torch.dtype) -> None:
    model({UP: torch.ones(8, 8).to(dtype), NORM: torch.ones(8)})  # norms may be float32
    name = str(dtype).removeprefix("torch.")
    (note,) = [note for note in cs.inspect("m").notes if "another copy" in note]
    assert f"{UP} is {name}" in note
    assert ".mlp.up_proj.weight is bfloat16" in note


def test_a_module_of_another_dtype_in_all_layers_is_not() -> None:
    model({f"model.layers.{i}.mlp.up_proj.weight": torch.ones(8, 8) for i in range(3)})
    assert not [note for note in cs.inspect("m").notes if "another copy" in note]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model.embed_tokens.weight": torch.float16}, "model.embed_tokens.weight is float16, but model.layers."),
        ({"model.norm.weight": torch.float16}, "model.norm.weight is float16, but model.layers."),
        ({"model.norm.weight": torch.float32}, ""),  # a norm may be more exact
        ({}, ""),
    ],
)
def test_tensors_outside_the_layers_in_another_16_bit_dtype_are_noted(
    changed: dict[str, torch.dtype], said: str
) -> None:
    shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,)}
    model({key: torch.ones(shapes[key], dtype=dtype) for key, dtype in changed.items()})
    found = [note for note in cs.inspect("m").notes if "like all layers" in note]
    assert len(found) == bool(said)
    assert all(note.startswith(said) and "may be from another copy" in note for note in found)


def test_another_stack_of_layers_is_not_outside_of_them() -> None:
    model({f"vision.stages.{i}.blocks.0.weight": torch.ones(8, 8).half() for i in range(2)})
    assert not [note for note in cs.inspect("m").notes if "like all layers" in note]


def test_both_16_bit_dtypes_in_layers_are_another_note() -> None:
    model({UP: torch.ones(8, 8).half(), "model.norm.weight": torch.ones(8).half()})
    assert not [note for note in cs.inspect("m").notes if "like all layers" in note]
    assert [note for note in cs.inspect("m").notes if "some layers may be from another copy" in note]


@pytest.mark.parametrize(
    ("dtype", "layers", "number"), [("float16", 3, 1), ("float32", 3, 0), ("bfloat16", 3, 0), ("float16", 0, 0)]
)
def test_norms_of_the_other_16_bit_dtype_in_all_layers_are_noted(dtype: str, layers: int, number: int) -> None:
    norms = {
        f"model.layers.{i}.input_layernorm.weight": torch.ones(8, dtype=getattr(torch, dtype)) for i in range(layers)
    }
    model(norms)
    found = [note for note in cs.inspect("m").notes if "and so in all layers" in note]
    assert len(found) == number
    assert all("input_layernorm.weight is float16, but model.layers.0.mlp" in note for note in found)


@pytest.mark.parametrize(("field", "section"), [("dtype", True), ("torch_dtype", True), ("dtype", False)])
def test_a_dtype_of_codes_is_noted_for_quantised_models(field: str, section: bool) -> None:
    settings = {"quantization_config": {"quant_method": "fp8"}} if section else {}
    model({}, **{field: "float8_e4m3fn"}, **settings)
    said = f"config.json says float8_e4m3fn ({field}), but this field is the dtype of computations, not of codes"
    assert any(note.startswith(said) for note in cs.inspect("m").notes) == section


def test_the_dtype_that_codes_decode_to_is_not_compared() -> None:
    draw = torch.Generator().manual_seed(0)
    state = {f"layers.{n}.up.weight": 0.02 * torch.randn(256, 256, generator=draw).bfloat16() for n in range(4)}
    Path("plain").mkdir()
    Path("plain/config.json").write_text('{"model_type": "other"}')
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize="fp8-block", exclude="layers.2.**"), "coded")
    plan = cs.merge(["coded", "plain"], method="linear", weights=[0.5, 0.5], encoding="dequantize")
    assert not [note for note in plan.notes if "another copy of the model" in note]
