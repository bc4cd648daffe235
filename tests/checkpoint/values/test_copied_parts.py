"""Scales of one quantised tensor that are those of another, bit for bit, under other codes, are said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckptsurgeon.checkpoint.values.copied_parts import _information

from ...helpers.coded_matrices import SETTINGS, awq, gptq, mlx, nested_nf4, nf4
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, write_model

ONE, OTHER = "model.layers.2.mlp.up_proj", "model.layers.3.mlp.up_proj"
SAID = "1 quantised tensor has {part} equal to those of another tensor in all bytes that were compared, but different {rest}: was one"
ENCODERS = {"gptq": gptq, "awq": awq, "nf4": nf4, "mlx": mlx}
PARTS = {"gptq": ".scales", "awq": ".scales", "nf4": ".weight.absmax", "mlx": ".biases"}


@pytest.mark.costly
@pytest.mark.parametrize("name", ENCODERS)
def test_scales_of_another_layer_are_said(name: str) -> None:
    state, end = coded_tensors(ENCODERS[name]), PARTS[name]
    assert false_alarms(write_model(Path("m"), state, SETTINGS[name]), "bit for bit") == []
    state[f"{ONE}{end}"] = state[f"{OTHER}{end}"].clone()
    path = write_model(Path("m"), state, SETTINGS[name])
    said = SAID.format(part=f"scales ({end.removeprefix('.weight').lstrip('.')})", rest="codes")
    assert said_by(path, said, f"{OTHER}.weight = {ONE}.weight") == [*QUICK]


@pytest.mark.long
def test_every_verb_says_it() -> None:
    state = coded_tensors(gptq)
    state[f"{ONE}.scales"] = state[f"{OTHER}.scales"].clone()
    assert silent(write_model(Path("m"), state, SETTINGS["gptq"]), "that were compared, but different codes") == []


def test_codes_of_another_layer_are_said() -> None:
    state = coded_tensors(gptq)
    state[f"{ONE}.qweight"] = state[f"{OTHER}.qweight"].clone()
    path = write_model(Path("m"), state, SETTINGS["gptq"])
    assert said_by(path, SAID.format(part="codes", rest="scales"), f"{OTHER}.weight = {ONE}.weight") == [*QUICK]


def test_a_copy_of_a_whole_weight_is_not() -> None:
    """It is a repeated layer, or ``ckpt check`` warns of it as of other weights."""
    state = coded_tensors(nested_nf4)
    for end in [key.removeprefix(ONE) for key in state if key.startswith(f"{ONE}.")]:
        state[f"{ONE}{end}"] = state[f"{OTHER}{end}"].clone()
    assert false_alarms(write_model(Path("m"), state, SETTINGS["nf4"]), "another tensor, bit for bit") == []


@pytest.mark.costly
@pytest.mark.parametrize("value", [1.0, 0.5])
def test_scales_that_are_all_one_number_are_not(value: float) -> None:
    state = coded_tensors(gptq)
    for key in [key for key in state if key.endswith(".scales")]:
        state[key] = torch.full_like(state[key], value)
    assert false_alarms(write_model(Path("m"), state, SETTINGS["gptq"]), "another tensor, bit for bit") == []


def test_a_few_values_may_be_equal_by_chance() -> None:
    assert _information(bytes(64), 4) == 0
    assert _information(bytes([1, 2] * 32), 2) == 0
    assert _information(bytes(range(16)), 4) == 8
    assert _information(bytes(range(64)), 4) == 64
