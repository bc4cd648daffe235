"""Scales of bitsandbytes that it never makes are said: another table of their values, or one scale for all blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values.scales import ONE_SCALE, OTHER_MAP, _dynamic_map
from ckptsurgeon.tensors.encoders.bitsandbytes import dynamic_map

from ...helpers.coded_matrices import SETTINGS, nested_nf4, nf4, save_model
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, write_model

ONE = "model.layers.3.mlp.up_proj.weight"
Change = Callable[[torch.Tensor], torch.Tensor]


def fill(value: float) -> Change:
    return lambda one: torch.full_like(one, value)


def shifted(one: torch.Tensor) -> torch.Tensor:
    changed = one.clone()
    changed[200] += 0.01
    return changed


@pytest.mark.long
@pytest.mark.parametrize("change", [lambda one: one**3, lambda one: one.flip(0), shifted, fill(0)])
def test_another_table_is_said(change: Change) -> None:
    state = coded_tensors(nested_nf4)
    assert false_alarms(write_model(Path("m"), state, SETTINGS["nf4"]), "nested") == []
    key = f"{ONE}.nested_quant_map"
    path = write_model(Path("m"), {**state, key: change(state[key])}, SETTINGS["nf4"])
    assert said_by(path, f"1 quantised tensor has {OTHER_MAP}: {ONE}") == [*QUICK]


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_table_that_is_rounded_is_not(dtype: torch.dtype) -> None:
    state = coded_tensors(nested_nf4)
    key = f"{ONE}.nested_quant_map"
    state[key] = state[key].to(dtype)
    assert false_alarms(write_model(Path("m"), state, SETTINGS["nf4"]), OTHER_MAP) == []


def test_it_is_the_table_of_bitsandbytes() -> None:
    assert np.abs(np.array(_dynamic_map()) - dynamic_map()).max() < 1e-7


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("value", [255, 31])
def test_one_code_for_all_scales_is_said(value: int) -> None:
    state = coded_tensors(nested_nf4)
    key = f"{ONE}.absmax"
    path = write_model(Path("m"), {**state, key: fill(value)(state[key])}, SETTINGS["nf4"])
    assert said_by(path, f"1 quantised tensor has {ONE_SCALE}: {ONE}") == [*QUICK]
    if value == 255:
        assert silent(path, f"1 quantised tensor has {ONE_SCALE}: {ONE}") == []


@pytest.mark.costly
@pytest.mark.parametrize("first", [0, 8192])
def test_that_of_half_of_a_tensor_is_said(first: int) -> None:
    """Of a large tensor, the first and the last scales are read."""
    parts = nested_nf4(torch.randn(512, 2048, generator=torch.Generator().manual_seed(0)))
    parts[".weight.absmax"][first : first + 8192] = 255
    path = save_model(Path("m"), SETTINGS["nf4"], {"model.layers.0.mlp.up_proj": parts})
    assert [ONE_SCALE in note for note in cs.inspect(path).notes] == [True]


@pytest.mark.costly
@pytest.mark.parametrize("draw", ["zeros", "ternary", "normal"])
def test_healthy_weights_may_have_one_scale(draw: str) -> None:
    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        some = {"zeros": weight * 0, "ternary": weight.sign() * (weight.abs() > 0.05), "normal": weight}[draw]
        parts = nf4(some + 0.0)
        return {**parts, ".weight.absmax": parts[".weight.absmax"].clamp(min=1e-3)}

    state = coded_tensors(encode)
    assert false_alarms(write_model(Path("m"), state, SETTINGS["nf4"]), ONE_SCALE) == []


def with_layer(state: dict[str, torch.Tensor], number: int, change: Change) -> dict[str, torch.Tensor]:
    is_meant = f"model.layers.{number}."
    return {
        key: change(one) if key.startswith(is_meant) and key.endswith(".absmax") else one for key, one in state.items()
    }


def squared(one: torch.Tensor) -> torch.Tensor:
    return one * one


@pytest.mark.long
@pytest.mark.each_value
@pytest.mark.parametrize("layers", [6, pytest.param(24, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", [0, 3])
def test_squared_scales_of_a_layer_are_said(layers: int, number: int) -> None:
    """In a large model, a sample has one matrix of each layer: the others of a doubtful layer are looked at, too."""

    def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
        return nf4(weight * 0.02 / weight.std())

    state = coded_tensors(encode, layers=layers)
    path, said = Path("m"), "of other layers"
    settings: dict[str, Any] = SETTINGS["nf4"]
    assert false_alarms(write_model(path, state, settings), said) == []
    write_model(path, with_layer(state, number, squared), settings)
    assert said_by(path, said) == [*QUICK]
    if (layers, number) == (6, 3):
        assert silent(path, said) == []
    (note,) = cs.inspect(path).notes
    assert "7 decoded matrices, all that were checked in their layers, are less than 1/8 as large" in note
    assert f"model.layers.{number}.mlp.down_proj.weight" in note
