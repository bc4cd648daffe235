"""scale_fmt ue8m0 says that scales are powers of two: others are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values.scales import NOT_POWERS

from ...helpers.coded_models import coded_tensors, false_alarms, silent, write_model

Parts = dict[str, torch.Tensor]
ONE = "model.layers.3.mlp.up_proj.weight"
BLOCK = 64
SETTINGS: dict[str, Any] = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK],
}  # fmt: skip
UE8M0 = {**SETTINGS, "scale_fmt": "ue8m0"}


def blocks(weight: torch.Tensor) -> Parts:
    """DeepSeek's 8-bit floats: a scale for each block."""
    cut = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    scale = cut.abs().amax((1, 3)) / 448
    codes = (cut / scale[:, None, :, None]).flatten(2).flatten(0, 1)
    return {".weight": codes.to(torch.float8_e4m3fn), ".weight_scale_inv": scale.float()}


def powers(weight: torch.Tensor) -> Parts:
    """DeepSeek-V3.1: the scales are rounded up to powers of two."""
    cut = weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    scale = torch.exp2(torch.ceil(torch.log2(cut.abs().amax((1, 3)) / 448)))
    codes = (cut / scale[:, None, :, None]).flatten(2).flatten(0, 1)
    return {".weight": codes.to(torch.float8_e4m3fn), ".weight_scale_inv": scale.float()}


@pytest.mark.long
def test_scales_that_are_not_powers_of_two_are_said() -> None:
    path = write_model(Path("m"), coded_tensors(blocks), UE8M0)
    assert silent(path, f"28 quantised tensors have {NOT_POWERS}: ") == []


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_of_them_is_said(dtype: torch.dtype) -> None:
    state = coded_tensors(powers)
    state = {key: one.to(dtype) if key.endswith("scale_inv") else one for key, one in state.items()}
    assert false_alarms(write_model(Path("m"), state, UE8M0), NOT_POWERS) == []
    state[f"{ONE}_scale_inv"][-1, -1] *= 1.5
    (note,) = cs.inspect(write_model(Path("m"), state, UE8M0)).notes
    assert note == f"m: 1 quantised tensor has {NOT_POWERS}: {ONE}"


@pytest.mark.parametrize(("encode", "settings"), [(powers, SETTINGS), (blocks, SETTINGS), (powers, UE8M0)])
def test_healthy_models_have_no_note(encode: Any, settings: dict[str, Any]) -> None:
    """Powers of two are healthy without the setting, too."""
    assert cs.inspect(write_model(Path("m"), coded_tensors(encode), settings)).notes == ()


def test_scales_that_are_computed_anew_are_powers_of_two() -> None:
    """A merge of such models writes the settings of the first: its scales have to fit them."""
    state = coded_tensors(powers)
    other = {key: one.flip(0) if key.endswith("up_proj.weight") else one for key, one in state.items()}
    zero = "model.layers.0.mlp.up_proj.weight"
    both = [{**one, zero: one[zero].float().mul(0).to(one[zero].dtype)} for one in (state, other)]
    paths = [write_model(Path(name), one, UE8M0) for name, one in zip("ab", both, strict=True)]
    cs.apply(cs.average(paths), "mean")
    assert cs.inspect("mean").notes == ()
    made = cs.open_checkpoint("mean")
    scales = [made.tensor(key) for key in made if key.endswith("_scale_inv")]
    assert len(scales) == 28
    assert all(torch.equal(one, torch.exp2(torch.log2(one).round())) for one in scales)
    codes = [made.tensor(key).float().abs().max() for key in made if key.endswith("up_proj.weight")]
    assert all(224 < one <= 448 for one in codes[1:])  # as much of the range as a power of two allows
    assert cs.verify("mean").ok
    difference = cs.diff("mean", paths[0], values=True)
    assert {one.key for one in difference.changed} <= {key for key in made if "proj" in key}
