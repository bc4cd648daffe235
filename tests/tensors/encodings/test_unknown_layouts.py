"""Codes in no layout of their method, and scales that do not fit, are named by every command, even if all are alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.torch_versions import needs_e8m0
from ...helpers.zoo import BY_NAME, ZOO, Quantised
from .test_agreement import VERBS

State = dict[str, torch.Tensor]
LAYERS = tuple(f"model.layers.{layer}.mlp.up_proj" for layer in range(3))
WEIGHTS = "model.safetensors"


def folder_of(name: str, path: Path, edit: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    folder = replace(BY_NAME[name], layers=LAYERS).folder(path / "m")
    state = {key: edit(key, tensor) for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    return folder


def each(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[str, torch.Tensor], torch.Tensor]:
    return lambda key, tensor: change(tensor).contiguous() if key.endswith(end) else tensor


def said(found: Any) -> list[str]:
    return [note for note in found.notes if "cannot be decoded" in note or "of a shape that does not fit" in note]


@pytest.mark.parametrize(
    ("name", "end", "change", "why"),
    [
        ("fp8-block", "up_proj.weight", lambda one: one.view(torch.uint8), "their quant_method fp8 does not store"),
        ("gptq", ".scales", lambda one: one.T, "their quant_method gptq does not store"),
        ("gptq", ".qweight", lambda one: one.view(torch.uint32), "their quant_method gptq does not store"),
        ("mxfp4", "_scales", lambda one: one.transpose(-1, -2), "their quant_method mxfp4 does not store"),
        ("fp8-block", "_inv", lambda one: one.flatten(), "weight_scale_inv of a shape that does not fit the codes"),
    ],
)
def test_all_tensors_of_no_layout_are_named(
    name: str, end: str, change: Callable[[torch.Tensor], torch.Tensor], why: str, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, each(end, change))
    (note,) = said(cs.inspect(folder))
    assert ": 3 quantised tensors " in note
    assert why in note
    assert cs.check(folder, skip=["class-tensors"]).row("quantisation").found


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb](folder_of("fp8-block", tmp_path, each("_inv", lambda one: one.flatten()))))


@needs_e8m0
def test_exponents_that_transformers_would_read_as_numbers_are_named(tmp_path: Path) -> None:
    folder = folder_of("mxfp4", tmp_path, each("_scales", lambda one: one.view(torch.float8_e8m0fnu)))
    assert any(
        "scales in float8_e8m0fnu, but transformers expects exponents in uint8" in note
        for note in cs.inspect(folder).notes
    )


def test_settings_under_their_old_name_are_named(tmp_path: Path) -> None:
    folder = BY_NAME["int4-packed"].folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    assert any("compression_config and no quantization_config" in note for note in cs.inspect(folder).notes)


SHAPES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number": lambda one: one.flatten()[:1].reshape(()) if one.numel() else one,
    "no rows": lambda one: one[:0],
    "flat": lambda one: one.flatten(),
    "three dimensions": lambda one: one[None],
}


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_parts_of_any_shape_are_no_bug(one: Quantised, shape: str, tmp_path: Path) -> None:
    folder = replace(one, layers=LAYERS[:1]).folder(tmp_path / "m")
    whole = load_file(folder / WEIGHTS)
    for key in whole:
        if LAYERS[0] in key and whole[key].dim():
            save_file({**whole, key: SHAPES[shape](whole[key]).contiguous()}, folder / WEIGHTS, {"format": "pt"})
            cs.inspect(folder)  # raises nothing


def test_a_sound_layer_does_not_share_the_verdict_of_another(tmp_path: Path) -> None:
    folder = replace(BY_NAME["int4-packed"], layers=LAYERS).folder(tmp_path / "m")
    state = load_file(folder / WEIGHTS)
    state[f"{LAYERS[0]}.weight_shape"] = torch.tensor([3, 5])
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    notes = cs.inspect(folder).notes
    assert any(LAYERS[0] in note for note in notes)
    assert not any(LAYERS[1] in note for note in notes)
