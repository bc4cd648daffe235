"""Codes of few bits that are stored as bytes, as compressed-tensors stores 4 bits in the format int-quantized."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

KEY = "model.layers.0.self_attn.q_proj.weight"


def coded(code: int, **weights: Any) -> None:
    """Write a folder with codes from -8 to 7, one of which is ``code``."""
    codes = (torch.arange(64 * 64) % 16 - 8).to(torch.int8).view(64, 64)
    codes[3, 5] = code
    scheme = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, "strategy": "channel", **weights}}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": scheme}}
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    save_file({KEY: codes, f"{KEY}_scale": torch.full((64, 1), 0.25)}, "model/model.safetensors", {"format": "pt"})


@pytest.mark.costly
@pytest.mark.parametrize("code", [-9, 8, 100])
def test_a_code_that_needs_more_bits_than_stated_is_an_error_and_a_fault(code: int) -> None:
    coded(code, num_bits=4)
    plan = cs.convert("model", dequantize=True)
    with pytest.raises(
        cs.FormatError, match=f"q_proj.weight has the code {code}, but .* num_bits 4: codes from -8 to 7"
    ):
        cs.apply(plan, "out")
    assert not Path("out/model.safetensors").exists()
    row = cs.check("model").row("scales")
    assert row.status.value == "FAIL"
    assert "need more bits than the quantization_config says (4 bits)" in row.found[0].what


@pytest.mark.costly
@pytest.mark.parametrize(("code", "bits"), [(-8, 4), (7, 4), (100, 8)])
def test_codes_within_the_stated_bits_are_decoded(code: int, bits: int) -> None:
    coded(code, num_bits=bits)
    cs.apply(cs.convert("model", dequantize=True), "out")
    assert load_file("out/model.safetensors")[KEY][3, 5] == code * 0.25
    assert cs.check("model").row("scales").status.value == "PASS"
