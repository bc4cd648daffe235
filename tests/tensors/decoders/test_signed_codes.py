"""Packed codes in two's complement, without the offset that decoding subtracts: said, and never of healthy weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

ROWS, COLUMNS, GROUP = 64, 256, 64
SAID = "codes with peaks at both ends of their range and few in its middle"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WEIGHTS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {
    "normal": lambda made: torch.randn(ROWS, COLUMNS, generator=made),
    "long tails": lambda made: torch.randn(ROWS, COLUMNS, generator=made) ** 3,
    "uniform": lambda made: torch.rand(ROWS, COLUMNS, generator=made) - 0.5,
    "positive": lambda made: torch.rand(ROWS, COLUMNS, generator=made),
    "ternary": lambda made: torch.randint(-1, 2, (ROWS, COLUMNS), generator=made).float(),
}


def words(codes: torch.Tensor, bits: int, order: Any = None) -> torch.Tensor:
    """Pack codes along the last dimension into words of 32 bits."""
    number = 32 // bits
    parts = codes.long().reshape(*codes.shape[:-1], -1, number)
    packed = sum(parts[..., one] << (bits * place) for place, one in enumerate(order or range(number)))
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32).contiguous()


def quantised(weight: torch.Tensor, bits: int, *, affine: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (codes, scales, smallest weights) of a weight in groups; codes without ``affine`` are symmetric."""
    groups, most = weight.reshape(ROWS, -1, GROUP), 2**bits - 1
    low = groups.amin(2, keepdim=True) if affine else -groups.abs().amax(2, keepdim=True)
    high = groups.amax(2, keepdim=True) if affine else -low
    scale = (high - low) / most
    return ((groups - low) / scale).round().clamp(0, most).reshape(ROWS, COLUMNS), scale[..., 0], low[..., 0]


def packed(weight: torch.Tensor, bits: int, flip: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    codes, scale, _ = quantised(weight, bits, affine=False)
    stored = {"weight_packed": words(codes.long() ^ flip, bits), "weight_scale": scale}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    shape = torch.tensor([ROWS, COLUMNS])
    return {**stored, "weight_shape": shape}, {"quantization_config": {**settings, "config_groups": groups}}


def gptq(weight: torch.Tensor, bits: int, flip: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    codes, scale, _ = quantised(weight, bits, affine=False)
    zeros = torch.full((COLUMNS // GROUP, ROWS), (1 << (bits - 1)) - 1)
    own = {"qweight": words(codes.long() ^ flip, bits).T.contiguous(), "qzeros": words(zeros, bits)}
    index = torch.arange(COLUMNS, dtype=torch.int32) // GROUP
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": True, "desc_act": False}
    return {**own, "scales": scale.T.contiguous().half(), "g_idx": index}, {"quantization_config": settings}


def awq(weight: torch.Tensor, bits: int, flip: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    codes, scale, low = quantised(weight, bits, affine=True)
    zeros = (-low / scale).round().clamp(0, 2**bits - 1)
    own = {"qweight": words((codes.long() ^ flip).T, bits, ORDER), "qzeros": words(zeros.T, bits, ORDER)}
    settings = {"quant_method": "awq", "bits": bits, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {**own, "scales": scale.T.contiguous().half()}, {"quantization_config": settings}


def mlx(weight: torch.Tensor, bits: int, flip: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    codes, scale, low = quantised(weight, bits, affine=True)
    own = {"weight": words(codes.long() ^ flip, bits).view(torch.uint32), "scales": scale, "biases": low}
    return own, {"quantization": {"group_size": GROUP, "bits": bits}}


FORMS = {"packed": packed, "gptq": gptq, "awq": awq, "mlx": mlx}
KINDS = [(form, bits) for form in FORMS for bits in (4, 8) if (form, bits) != ("awq", 8)]


def model(form: str, bits: int, kind: str, *, signed: bool) -> str:
    """Save two layers, whose codes are in two's complement if ``signed``."""
    made = torch.Generator().manual_seed(0)
    state, config = {}, {}
    for layer in range(2):
        weight = WEIGHTS[kind](made) * 0.02
        own, config = FORMS[form](weight, bits, 1 << (bits - 1) if signed else 0)
        state |= {f"model.layers.{layer}.mlp.up_proj.{end}": one for end, one in own.items()}
    Path("m").mkdir()
    save_file(state, "m/model.safetensors", {"format": "pt"})
    Path("m/config.json").write_text(json.dumps({"model_type": "my_own", **config}))
    return "m"


def said(notes: Any) -> list[str]:
    return [one for one in notes if SAID in one]


@pytest.mark.parametrize("kind", ["normal", "long tails"])
@pytest.mark.parametrize(("form", "bits"), KINDS)
def test_codes_in_twos_complement_are_said(form: str, bits: int, kind: str) -> None:
    path = model(form, bits, kind, signed=True)
    (note,) = said(cs.inspect(path).notes)
    assert note.startswith(f"m: 2 quantised tensors have {SAID}: perhaps they are in two's complement")
    assert said(cs.convert(path).notes) == [note]
    assert said(cs.apply(cs.convert(path, dequantize=True), "plain").notes) == [note]
    assert said(one.what for one in cs.check(path).row("scales").found)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("form", "bits"), KINDS)
def test_codes_with_an_offset_are_not(form: str, bits: int, kind: str) -> None:
    path = model(form, bits, kind, signed=False)
    assert not said(cs.inspect(path).notes)
    if kind in [*WEIGHTS][:2]:  # the other verbs look at the same codes with the same tests
        assert not said(cs.apply(cs.convert(path, dequantize=True), "plain").notes)
        assert not said(one.what for one in cs.check(path).row("scales").found)


@pytest.mark.parametrize("kind", ["uniform", "ternary"])
def test_codes_that_do_not_show_it_are_not(kind: str) -> None:
    assert not said(cs.inspect(model("packed", 4, kind, signed=True)).notes)
