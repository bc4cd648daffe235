"""Codes of a known method that no program can decode are named by every command, even if all tensors are alike."""

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
    return [note for note in found.notes if "cannot be decoded" in note]


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_nothing_is_said_of_sound_models(one: Quantised, tmp_path: Path) -> None:
    assert not said(cs.inspect(one.folder(tmp_path / "m")))
    assert not said(cs.inspect(replace(one, layers=LAYERS).folder(tmp_path / "three")))


@pytest.mark.parametrize(
    ("name", "end", "change", "why"),
    [
        ("fp8-block", "up_proj.weight", lambda one: one.view(torch.uint8), "in no layout of fp8, its quant_method"),
        ("gptq", ".scales", lambda one: one.T, "in no layout of gptq, its quant_method"),
        ("gptq", ".qweight", lambda one: one.view(torch.uint32), "in no layout of gptq, its quant_method"),
        ("mxfp4", "_scales", lambda one: one.transpose(-1, -2), "in no layout of mxfp4, its quant_method"),
        ("fp8-block", "_inv", lambda one: one.flatten(), "which does not fit its codes"),
    ],
)
def test_all_tensors_of_no_layout_are_named(
    name: str, end: str, change: Callable[[torch.Tensor], torch.Tensor], why: str, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, each(end, change))
    (note,) = said(cs.inspect(folder))
    assert "3 quantised tensors cannot be decoded: of model.layers.0.mlp" in note
    assert why in note
    assert cs.check(folder, skip=["class-tensors"]).row("quantisation").found


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb](folder_of("fp8-block", tmp_path, each("_inv", lambda one: one.flatten()))))


def test_exponents_that_transformers_would_read_as_numbers_are_named(tmp_path: Path) -> None:
    folder = folder_of("mxfp4", tmp_path, each("_scales", lambda one: one.view(torch.float8_e8m0fnu)))
    assert any("scales in float8_e8m0fnu, but transformers reads uint8" in note for note in cs.inspect(folder).notes)


def test_settings_under_their_old_name_are_named(tmp_path: Path) -> None:
    folder = BY_NAME["int4-packed"].folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["compression_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    assert any("compression_config and no quantization_config" in note for note in cs.inspect(folder).notes)
