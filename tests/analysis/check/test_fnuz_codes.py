"""Bytes of fnuz dtypes under the name of a usual 8-bit float: without a negative zero, said by ckpt check."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

USUAL = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
FNUZ = {"e4m3": torch.float8_e4m3fnuz, "e5m2": torch.float8_e5m2fnuz}
SAID = "of 8-bit floats without a single negative zero"
LAYERS, ROWS, COLUMNS = 3, 128, 512


def model(dtype: torch.dtype, label: torch.dtype, *, share: float = 1.0) -> str:
    """Save layers whose codes are often near 0, with a scale for each; all but a ``share`` of the weights are 0."""
    made = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(LAYERS):
        weight = torch.randn(ROWS, COLUMNS, generator=made) * 50 * torch.finfo(label).smallest_normal
        weight *= torch.rand(ROWS, COLUMNS, generator=made) < share
        key = f"model.layers.{layer}.mlp.up_proj.weight"
        state |= {key: weight.to(dtype).view(torch.uint8).view(label), f"{key}_scale": torch.tensor([0.01])}
    save_file(state, "m.safetensors", {"format": "pt"})
    return "m.safetensors"


def warned(path: str) -> list[str]:
    return [one.what for one in cs.check(path).row("scales").found if SAID in one.what]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("form", USUAL)
def test_fnuz_bytes_under_the_usual_name_are_found(form: str) -> None:
    (what,) = warned(model(FNUZ[form], USUAL[form]))
    assert f"3 tensors {SAID}" in what
    assert f"perhaps their dtype is float8_{form}fn".removesuffix("fn") in what
    assert "uz, so that the right weights are half as large" in what


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("form", USUAL)
def test_usual_8_bit_floats_are_not(form: str, share: float) -> None:
    assert not warned(model(USUAL[form], USUAL[form], share=share))


def test_the_number_of_negative_zeros_is_about_the_expected_one() -> None:
    from ckptsurgeon.analysis.check.measuring.one_pass import measure

    checkpoint = cs.open_checkpoint(model(USUAL["e4m3"], USUAL["e4m3"]))
    codes = {key: info for key, info in checkpoint.items() if key.endswith("weight")}
    figures = [one.figures for one in measure(checkpoint, codes, ()).values()]
    expected = sum(one.denormals for one in figures if one) / 28
    found = sum(one.negative_zeros for one in figures if one)
    codes_of = [checkpoint.tensor(key).view(torch.uint8) for key in codes]
    assert found == sum(int((one == 0x80).sum()) for one in codes_of)
    assert expected > 50
    assert abs(found - expected) < 3 * expected**0.5


def test_few_small_numbers_show_nothing() -> None:
    made = torch.Generator().manual_seed(0)
    codes = (torch.randn(ROWS, COLUMNS, generator=made) * 60).to(torch.float8_e4m3fnuz).view(torch.uint8)
    key = "model.layers.0.mlp.up_proj.weight"
    state = {key: codes.view(torch.float8_e4m3fn), f"{key}_scale": torch.tensor([1e-4])}
    save_file(state, "m.safetensors", {"format": "pt"})
    assert not warned("m.safetensors")


def test_weights_that_are_never_negative_show_nothing() -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.rand(ROWS, COLUMNS, generator=made) ** 9
    key = "model.layers.0.mlp.up_proj.weight"
    state = {key: (weight * 400).to(torch.float8_e4m3fn), f"{key}_scale": torch.tensor([1e-4])}
    save_file(state, "m.safetensors", {"format": "pt"})
    assert not warned("m.safetensors")
