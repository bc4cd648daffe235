"""4-bit codes of bitsandbytes that are stored in floats (``bnb_4bit_quant_storage``): their values are not numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

RECORDED = Path(__file__).parent / "recorded" / "bitsandbytes-nf4.safetensors"
HIGHEST = 0xFF
"""The byte of two codes of the largest weight: 2 or 4 of them are a NaN in floats of 16 or 32 bits."""


def saved(path: Path, dtype: torch.dtype) -> Path:
    """A model of one layer of nf4, in which some codes look like NaN when they are read as floats."""
    state = {key: one for key, one in load_file(RECORDED).items() if key != "expected"}
    name = next(key for key in state if key.endswith(".weight"))
    codes = state[name].reshape(-1).clone()
    codes[:64] = HIGHEST
    state[name] = codes.view(dtype).reshape(-1, 1)
    path.mkdir()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    settings["bnb_4bit_quant_storage"] = str(dtype).removeprefix("torch.")
    config = {"model_type": "llama", "hidden_size": 44, "quantization_config": settings}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
def test_codes_in_floats_are_not_taken_for_nan(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", dtype)
    assert [row.id for row in cs.check(folder).rows if row.id == "not-finite" and row.found] == []
    receipt = cs.apply(cs.convert(folder), tmp_path / "copy")
    said = [*cs.inspect(folder).notes, *receipt.notes, *cs.verify(tmp_path / "copy").notes]
    assert [note for note in said if "NaN" in note] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_in_floats_have_the_shape_of_their_weight(dtype: torch.dtype, tmp_path: Path) -> None:
    notes = cs.inspect(saved(tmp_path / "m", dtype)).notes
    assert notes == cs.inspect(saved(tmp_path / "n", torch.uint8)).notes


def test_numbers_of_one_column_may_still_be_nan(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.full((64, 1), torch.nan)}, tmp_path / "m.safetensors")
    assert any("NaN" in note for note in cs.inspect(tmp_path / "m.safetensors").notes)
