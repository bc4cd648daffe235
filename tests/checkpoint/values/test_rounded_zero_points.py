"""Packed zero points that were cast to floats and back: said, and never of those that a method of quantisation wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.coded_matrices import SETTINGS, Encode, awq, gptq, words
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, statuses, write_model

Parts = dict[str, torch.Tensor]
SAID = (
    "whose lowest bits are nearly always 0, unlike their highest bits: were the packed words cast to a floating-point"
)
GROUP = 32


def _asymmetric(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The codes, scales and zero points of a weight whose rows have other means than 0."""
    groups = (weight.float() + 0.02 * torch.arange(len(weight))[:, None].sin()).unflatten(-1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    zero = torch.round(-low / scale).clamp(1, 15)
    codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, 15).flatten(-2)
    return codes, scale.half(), zero


def asymmetric_gptq(weight: torch.Tensor) -> Parts:
    codes, scale, zero = _asymmetric(weight)
    own = {".qweight": words(codes).T, ".qzeros": words((zero - 1).T), ".scales": scale.T}
    return {**own, ".g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP}


def asymmetric_int4(weight: torch.Tensor) -> Parts:
    codes, scale, zero = _asymmetric(weight)
    own = {".weight_packed": words(codes), ".weight_zero_point": words(zero.T).T, ".weight_scale": scale}
    return {**own, ".weight_shape": torch.tensor(weight.shape)}


GPTQ = {**SETTINGS["gptq"], "sym": False, "group_size": GROUP}
INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}}},
}  # fmt: skip
CASES: dict[str, tuple[Encode, dict[str, Any]]] = {
    "gptq": (asymmetric_gptq, GPTQ),
    "awq": (awq, SETTINGS["awq"]),
    "int4": (asymmetric_int4, INT4),
}
ENDS = (".qzeros", ".weight_zero_point")


def changed(state: Parts, change: Callable[[torch.Tensor], torch.Tensor]) -> Parts:
    return {key: change(one) if key.endswith(ENDS) else one for key, one in state.items()}


def cast(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """A cast of int32 to a dtype and back that keeps the largest numbers in the range of int32."""
    return lambda one: one.to(dtype).double().clamp(-(2**31), 2**31 - 1).to(torch.int32)


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_zero_points_that_were_floats_are_said(name: str, dtype: torch.dtype) -> None:
    encode, settings = CASES[name]
    state = coded_tensors(encode)
    assert false_alarms(write_model(Path("m"), state, settings), SAID) == []
    path = write_model(Path("m"), changed(state, cast(dtype)), settings)
    assert said_by(path, "28 quantised tensors have packed ", SAID) == [*QUICK]
    assert statuses(path, SAID) == ["FAIL"]


@pytest.mark.long
def test_all_verbs_say_so() -> None:
    state = changed(coded_tensors(asymmetric_gptq), cast(torch.float32))
    assert silent(write_model(Path("m"), state, GPTQ), SAID) == []


@pytest.mark.costly
@pytest.mark.parametrize("sym", [True, False])
def test_symmetric_zero_points_get_one_note(sym: bool) -> None:
    state = changed(coded_tensors(gptq), cast(torch.float32))
    notes = cs.inspect(write_model(Path("m"), state, {**SETTINGS["gptq"], "sym": sym})).notes
    assert len([one for one in notes if "qzeros" in one]) == 1


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "all zero": torch.zeros_like,
    "the middle": lambda one: torch.full_like(one, -0x77777778),
    "the middle of 8 bits": lambda one: torch.full_like(one, -0x7F7F7F80),
    "small": lambda one: one.bitwise_and(0xFFFFF0),
}


@pytest.mark.costly
@pytest.mark.parametrize("change", CHANGES)
def test_other_zero_points_are_not(change: str) -> None:
    state = changed(coded_tensors(asymmetric_gptq), CHANGES[change])
    assert false_alarms(write_model(Path("m"), state, GPTQ), SAID) == []
