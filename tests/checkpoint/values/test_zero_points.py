"""Zero points of symmetric codes are all equal: a tensor, a layer or a half of a matrix with others is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values.samples import first_and_last_rows
from ckptsurgeon.checkpoint.values.zero_points import UNLIKE_OTHERS
from ckptsurgeon.tensors.info import Storage, TensorInfo

from ...helpers.coded_matrices import PLACES, SETTINGS, Encode, awq, gptq, words
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, write_model

Parts = dict[str, torch.Tensor]
ONE, LAYER = "model.layers.3.mlp.up_proj", "model.layers.3."
STEP = 0x11111111
WITHOUT_SYM = {key: value for key, value in SETTINGS["gptq"].items() if key != "sym"}
SYMMETRIC_AWQ = {**SETTINGS["awq"], "zero_point": False}


def symmetric_awq(weight: torch.Tensor) -> Parts:
    """AWQ's layout with the middle of the codes as the only zero point."""
    groups = weight.float().unflatten(-1, (-1, 64))
    scale = groups.abs().amax(-1) * 2 / 15
    codes = (torch.round(groups / scale[..., None]) + 8).clamp(0, 15).flatten(-2).T
    codes, zeros = (one.unflatten(-1, (-1, 8))[..., PLACES].flatten(-2) for one in (codes, torch.full_like(scale, 8).T))
    return {".qweight": words(codes), ".qzeros": words(zeros), ".scales": scale.T.contiguous().half()}


CASES: tuple[tuple[Encode, dict[str, Any], int], ...] = (
    (gptq, SETTINGS["gptq"], STEP),
    (gptq, WITHOUT_SYM, STEP),
    (gptq, {**WITHOUT_SYM, "sym": False}, STEP),
    (symmetric_awq, SYMMETRIC_AWQ, -STEP),
)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("where", [ONE, LAYER])
@pytest.mark.parametrize(("encode", "settings", "step"), CASES)
def test_zero_points_of_another_format_are_said(
    encode: Encode, settings: dict[str, Any], step: int, where: str
) -> None:
    """Every verb says it of a layer of AWQ's; those that look at most say it of all."""
    state = coded_tensors(encode)
    assert false_alarms(write_model(Path("m"), state, settings), "qzeros") == []
    changed = {
        key: one + step if key.startswith(where) and key.endswith(".qzeros") else one for key, one in state.items()
    }
    path = write_model(Path("m"), changed, settings)
    usual, own = (7, 8) if step > 0 else (8, 7)
    said = (f"qzeros that are all {own}, although those of", f"{UNLIKE_OTHERS}{usual}: perhaps")
    if (encode, where) == (symmetric_awq, LAYER):
        assert silent(path, *said) == []
    else:
        assert said_by(path, *said) == [*QUICK]
    assert not [note for note in cs.inspect(path).notes if "for each weight, as version" in note]


@pytest.mark.costly
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("encode", "settings", "step"), CASES[1:])
def test_those_of_half_of_a_matrix_are_said(encode: Encode, settings: dict[str, Any], step: int, axis: int) -> None:
    state = coded_tensors(encode)
    zeros = state[f"{ONE}.qzeros"].clone()
    zeros.narrow(axis, 0, zeros.shape[axis] // 2).add_(step)
    path = write_model(Path("m"), {**state, f"{ONE}.qzeros": zeros}, settings)
    said = "1 quantised tensor has different qzeros, although those of 27 similar tensors"
    assert said_by(path, said, f"{ONE}.weight") == [*QUICK]


def test_half_of_a_matrix_is_no_other_version_of_the_format() -> None:
    state = coded_tensors(gptq)
    state[f"{ONE}.qzeros"][0] += STEP
    said = cs.inspect(write_model(Path("m"), state, SETTINGS["gptq"])).notes
    assert [("qzeros that are not the middle" in one, ONE in one) for one in said if "qzeros" in one] == [(True, True)]


@pytest.mark.long
def test_zero_points_of_asymmetric_codes_may_differ() -> None:
    """Also if a few tensors are symmetric, and if settings say for which modules."""
    state = coded_tensors(awq)
    assert false_alarms(write_model(Path("m"), state, SETTINGS["awq"]), "qzeros") == []
    few = coded_tensors(symmetric_awq)
    state.update((key, one) for key, one in few.items() if key.startswith(LAYER))
    assert false_alarms(write_model(Path("m"), state, SETTINGS["awq"]), "qzeros") == []
    own = {"dynamic": {r"+:model\.layers\.3\..*": {"sym": False}}}
    state = coded_tensors(gptq)
    state[f"{ONE}.qzeros"][0] += STEP
    assert (
        false_alarms(write_model(Path("m"), state, {**SETTINGS["gptq"], "sym": True, **own}), "similar tensors") == []
    )


def test_the_first_and_the_last_rows_are_read() -> None:
    info = TensorInfo("int32", (100, 8), Storage("x", 0, 3200), 64)
    assert [*first_and_last_rows(info, 3200)] == [info]
    pieces = [(one.shape, one.offset) for one in first_and_last_rows(info, 320)]
    assert pieces == [((5, 8), 64), ((5, 8), 64 + 95 * 32)]
    assert [one.shape for one in first_and_last_rows(info, 8)] == [(1, 8), (1, 8)]
