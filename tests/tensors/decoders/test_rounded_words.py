"""Packed words that were cast to floats and back lose their lowest codes: said, and never of healthy weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.odd_scales.kinds import ROUNDED
from ckptsurgeon.tensors.odd_scales.shifted import OFF_BY_ONE, SHIFTED, shifted_names

from .test_signed_codes import KINDS, WEIGHTS, model

SAID = "were the packed words cast to a floating-point dtype and back?"
MIDDLES = "qzeros that are not the middle"


def cast(path: str, dtype: torch.dtype = torch.float32, end: str = "") -> None:
    """Cast the words whose keys have this ending to a float dtype and back."""
    file = Path(path) / "model.safetensors"
    state = load_file(file)
    for key, one in state.items():
        if one.dtype in (torch.int32, torch.uint32) and key.endswith(end):
            wide = one.to(dtype).double().long()
            wide = torch.where(wide >= 1 << 31, wide - (1 << 32), wide)  # torch casts no large number to uint32
            state[key] = wide.to(torch.int32).view(one.dtype)
    save_file(state, file, {"format": "pt"})


def said(notes: Any, text: str = SAID) -> list[str]:
    return [one for one in notes if text in one]


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "bits"), KINDS)
def test_words_that_were_floats_are_said(form: str, bits: int, dtype: torch.dtype) -> None:
    path = model(form, bits, "normal", signed=False)
    assert not said(cs.inspect(path).notes)
    cast(path, dtype)
    notes = [note for note in said(cs.inspect(path).notes) if "qzeros" not in note]
    (note,) = notes
    assert note.startswith("m: 2 quantised tensors have packed words whose lowest bits are nearly always 0")
    assert not said(cs.inspect(path).notes, MIDDLES)
    assert note in cs.convert(path).notes
    assert note in cs.filter(path, include="**").notes
    assert note in cs.apply(cs.convert(path, dequantize=True), "plain").notes
    report = cs.check(path)
    (found,) = [one for one in report.row("scales").found if SAID in one.what]
    assert found.status.name == "FAIL"
    assert not [one for row in report.rows for one in row.found if OFF_BY_ONE in one.what]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("form", "bits"), KINDS)
def test_other_codes_are_not(form: str, bits: int, kind: str) -> None:
    path = model(form, bits, kind, signed=False)
    assert not said(cs.inspect(path).notes)
    if kind in [*WEIGHTS][:2]:  # the other verbs look at the same codes with the same tests
        assert not said(cs.apply(cs.convert(path, dequantize=True), "plain").notes)
        assert not said(one.what for one in cs.check(path).row("scales").found)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "all zero": torch.zeros_like,
    "all alike": lambda one: torch.full_like(one, 0x77777777),
    "one code in each word": lambda one: one & -0x10000000,
    "small words": lambda one: one >> 6,
}


@pytest.mark.parametrize("change", CHANGES)
def test_unusual_words_are_not(change: str) -> None:
    path = model("packed", 4, "normal", signed=False)
    file = Path(path) / "model.safetensors"
    made = CHANGES[change]
    state = {key: made(one) if key.endswith("packed") else one for key, one in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    assert not said(cs.inspect(path).notes)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_that_were_floats_have_no_other_advice(bits: int) -> None:
    path = model("gptq", bits, "normal", signed=False)
    cast(path, end="qzeros")
    (note,) = said(cs.inspect(path).notes)
    assert "qzeros that are all the middle of the codes, except for the lowest bits" in note
    assert not said(cs.inspect(path).notes, MIDDLES)
    assert said(one.what for row in cs.check(path).rows for one in row.found)


def test_words_of_small_floats_of_mlx() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << 32, (64, 64), generator=draw).to(torch.uint32)
    state = {"a.weight": codes, "a.scales": torch.full((64, 16), 120, dtype=torch.uint8)}
    Path("m").mkdir()
    save_file(state, "m/model.safetensors", {"format": "pt"})
    settings = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    Path("m/config.json").write_text(json.dumps({"model_type": "my_own", "quantization": settings}))
    assert not said(cs.inspect("m").notes)
    cast("m")
    assert said(cs.inspect("m").notes)


def test_rounded_words_are_no_zero_points_off_by_one() -> None:
    names = {SHIFTED[False]: ["a", "b", "c", "d"], SHIFTED[True]: []}
    assert shifted_names(names, 4)
    assert not shifted_names({**names, ROUNDED: ["a"]}, 4)
