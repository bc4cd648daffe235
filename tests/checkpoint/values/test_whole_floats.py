"""8-bit floats that are whole numbers, as int8 has them: said, and never of codes of a method of quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values.lost_scales import _magnitude

from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, write_model

Parts = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
SAID = "8-bit floats that are all whole numbers up to 128"
BLOCKS: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [64, 64]}
LAYER = "model.layers.3."


def in_blocks(weight: torch.Tensor) -> Parts:
    """Codes whose largest in each block of 64 by 64 weights is 448."""
    rows, columns = (size // 64 for size in weight.shape)
    scale = weight.float().reshape(rows, 64, columns, 64).abs().amax((1, 3)) / 448
    codes = weight / scale.repeat_interleave(64, 0).repeat_interleave(64, 1)
    return {".weight": codes.to(FP8), ".weight_scale_inv": scale}


def as_whole(weight: torch.Tensor) -> Parts:
    return {**in_blocks(weight), ".weight": in_blocks(weight)[".weight"].view(torch.int8).float().to(FP8)}


@pytest.mark.costly
@pytest.mark.parametrize("where", ["model.layers.", LAYER])
def test_bytes_that_were_read_as_integers_are_said(where: str) -> None:
    healthy, state = coded_tensors(in_blocks), coded_tensors(as_whole)
    assert false_alarms(write_model(Path("m"), healthy, BLOCKS), SAID) == []
    path = write_model(Path("m"), {key: (state if where in key else healthy)[key] for key in state}, BLOCKS)
    assert said_by(path, SAID, "model.layers.3" if where == LAYER else "model.layers.0") == [*QUICK]
    found = [one for row in cs.check(path).rows for one in row.found if SAID in one.what]
    assert [(one.status.name, one.what.split()[0]) for one in found] == [("WARN", "7" if where == LAYER else "28")]


@pytest.mark.long
def test_all_verbs_say_so() -> None:
    assert silent(write_model(Path("m"), coded_tensors(as_whole), BLOCKS), SAID) == []


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole numbers up to 448": lambda one: one.float().round().to(FP8),
    "small whole numbers": lambda one: (one.float() / 16).round().to(FP8),
    "ternary": lambda one: one.float().sign().to(FP8),
    "powers of two": lambda one: (one.float().sign() * 64).to(FP8),
    "zeros": torch.zeros_like,
    "a single scale": lambda one: (one.float() / 20).to(FP8),
    "NaN": lambda one: torch.full_like(one, float("nan")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_codes_are_not(change: str) -> None:
    state = coded_tensors(in_blocks)
    state = {key: CHANGES[change](one) if one.dtype == FP8 else one for key, one in state.items()}
    assert false_alarms(write_model(Path("m"), state, BLOCKS), SAID) == []


def test_magnitudes_are_those_of_torch() -> None:
    codes = torch.arange(0x7F, dtype=torch.uint8)
    assert [_magnitude(code) for code in codes.tolist()] == codes.view(FP8).float().tolist()
