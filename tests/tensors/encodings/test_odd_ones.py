"""Scales of another name, and codes of another dtype, than those of the other layers: said by every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.zoo import IN, OUT
from .test_missing_parts import THREE, State
from .test_whole_set import folder_of, said


def renamed(layers: int, old: str, new: str) -> Callable[[State], object]:
    def edit(state: State) -> None:
        for stem in THREE[:layers]:
            state[f"{stem}{new}"] = state.pop(f"{stem}{old}")

    return edit


@pytest.mark.parametrize("layers", [1, 3])
def test_scales_of_blocks_under_the_name_of_other_scales_are_said(layers: int, tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path, renamed(layers, ".weight_scale_inv", ".weight_scale"))
    (note,) = said(cs.inspect(folder))
    assert (
        "weight_scale, but with the weight_block_size in its quantization_config, loaders look for weight_scale_inv"
        in note
    )


def test_one_scale_of_another_name_is_said(tmp_path: Path) -> None:
    edit = renamed(1, ".weight_scale", ".weight_scale_inv")
    (note,) = said(cs.inspect(folder_of("fp8-channel", tmp_path, edit)))
    says = "with the quant_method compressed-tensors in its quantization_config, loaders look for weight_scale"
    assert note == f"1 quantised tensor has weight_scale_inv, but {says}: {THREE[0]}.weight"


def test_one_tensor_of_another_float_is_said(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        state[f"{THREE[1]}.weight"] = state[f"{THREE[1]}.weight"].float().to(torch.float8_e5m2)

    (note,) = said(cs.inspect(folder_of("fp8-block", tmp_path, edit)))
    assert note == f"1 quantised tensor has float8_e5m2, but 2 similar tensors have float8_e4m3fn: {THREE[1]}.weight"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_codes_stored_as_bytes_are_said(dtype: torch.dtype, tmp_path: Path) -> None:
    def edit(state: State) -> None:
        state[f"{THREE[1]}.weight"] = state[f"{THREE[1]}.weight"].view(dtype)

    (note,) = said(cs.inspect(folder_of("fp8-block", tmp_path, edit)))
    name = str(dtype).removeprefix("torch.")
    assert note == f"1 quantised tensor has {name}, but 2 similar tensors have float8_e4m3fn: {THREE[1]}.weight"


def test_scales_of_another_dtype_are_said(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        state[f"{THREE[1]}.weight_scale_inv"] = state[f"{THREE[1]}.weight_scale_inv"].to(torch.float8_e4m3fn)

    (note,) = said(cs.inspect(folder_of("fp8-block", tmp_path, edit)))
    has = "1 quantised tensor has scales of float8_e4m3fn, but 2 similar tensors have scales of float32"
    assert note == f"{has}: {THREE[1]}.weight"


def test_modules_of_another_kind_may_differ(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        state["model.layers.0.self_attn.indexer.weight"] = torch.ones(OUT, IN).to(torch.float8_e5m2)
        state["model.layers.0.self_attn.indexer.weight_scale"] = torch.tensor(1.0)

    assert not said(cs.inspect(folder_of("fp8-channel", tmp_path, edit)))
