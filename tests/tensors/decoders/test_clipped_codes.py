"""Codes that were made with too small scales, so that the largest weights were clipped: said, and not of healthy ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_signed_codes import words

ROWS, COLUMNS, GROUP = 64, 256, 64
SAID = "codes of which the lowest and the highest are far more frequent than those next to them"
Parts = dict[str, torch.Tensor]
WEIGHTS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {
    "normal": lambda made: torch.randn(ROWS, COLUMNS, generator=made),
    "long tails": lambda made: torch.randn(ROWS, COLUMNS, generator=made) ** 3,
    "uniform": lambda made: torch.rand(ROWS, COLUMNS, generator=made) - 0.5,
    "positive": lambda made: torch.rand(ROWS, COLUMNS, generator=made),
    "ternary": lambda made: torch.randint(-1, 2, (ROWS, COLUMNS), generator=made).float(),
    "waves": lambda made: torch.sin(torch.arange(ROWS * COLUMNS).float() / 7 + torch.rand(1, generator=made)).view(
        ROWS, COLUMNS
    ),
}


def settings(form: str, bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    """The settings of compressed-tensors."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}}


def fp8(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    scale = weight.abs().max() * share / 448
    codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.reshape(1)}, settings("float-quantized", 8, "float", "tensor")


def fp8_of_rows(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    scale = weight.abs().amax(1, keepdim=True) * share / 448
    codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, settings("float-quantized", 8, "float", "channel")


def mxfp8(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    """Scales that are powers of two, rounded down as the specification of microscaling formats says (OCP MX v1.0)."""
    groups = weight.reshape(ROWS, -1, 32)
    exponents = (groups.abs().amax(2) * share).log2().floor() - 8
    codes = (groups / exponents.exp2()[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    stored = {"weight": codes.reshape(ROWS, COLUMNS), "weight_scale": (exponents + 127).to(torch.uint8)}
    return stored, settings("mxfp8-quantized", 8, "float", "group", group_size=32)


def int8(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    scale = weight.abs().amax(1, keepdim=True) * share / 127
    codes = (weight / scale).round().clamp(-127, 127).to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, settings("int-quantized", 8, "int", "channel")


def int4(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    groups = weight.reshape(ROWS, -1, GROUP)
    scale = groups.abs().amax(2) * share / 7.5
    codes = (groups / scale[..., None]).round().clamp(-8, 7).reshape(ROWS, COLUMNS) + 8
    stored = {"weight_packed": words(codes, 4), "weight_scale": scale, "weight_shape": torch.tensor([ROWS, COLUMNS])}
    return stored, settings("pack-quantized", 4, "int", "group", group_size=GROUP)


def gptq(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    stored, _ = int4(weight, share)
    index = torch.arange(COLUMNS, dtype=torch.int32) // GROUP
    zeros = words(torch.full((COLUMNS // GROUP, ROWS), 7), 4)
    own = {"qweight": stored["weight_packed"].T.contiguous(), "qzeros": zeros, "g_idx": index}
    config = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    return {**own, "scales": stored["weight_scale"].T.contiguous().half()}, {"quantization_config": config}


def mlx(weight: torch.Tensor, share: float) -> tuple[Parts, dict[str, Any]]:
    groups = weight.reshape(ROWS, -1, GROUP)
    middle = (groups.amax(2) + groups.amin(2)) / 2
    half = (groups.amax(2) - groups.amin(2)) / 2 * share
    scale, low = 2 * half / 15, middle - half
    codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).reshape(ROWS, COLUMNS)
    stored = {"weight": words(codes, 4).view(torch.uint32), "scales": scale, "biases": low}
    return stored, {"quantization": {"group_size": GROUP, "bits": 4}}


FORMS = {"fp8": fp8, "fp8 of rows": fp8_of_rows, "mxfp8": mxfp8, "int8": int8, "int4": int4, "gptq": gptq, "mlx": mlx}


def model(form: str, kind: str, share: float, path: str = "m") -> str:
    """Save two layers whose scales are made for weights up to ``share`` times the largest weight of their group."""
    made = torch.Generator().manual_seed(0)
    state, config = {}, {}
    for layer in range(2):
        own, config = FORMS[form](WEIGHTS[kind](made) * 0.02, share)
        state |= {f"model.layers.{layer}.mlp.up_proj.{end}": one for end, one in own.items()}
    Path(path).mkdir()
    save_file(state, f"{path}/model.safetensors", {"format": "pt"})
    Path(path, "config.json").write_text(json.dumps({"model_type": "my_own", **config}))
    return path


def said(notes: Any) -> list[str]:
    return [one for one in notes if SAID in one]


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("form", FORMS)
def test_clipped_codes_are_said(form: str, kind: str) -> None:
    path = model(form, kind, 0.25)
    (note,) = said(cs.inspect(path).notes)
    assert note.startswith(f"m: 2 quantised tensors have {SAID}: perhaps larger weights were clipped")
    assert said(cs.convert(path).notes) == [note]
    assert said(cs.apply(cs.convert(path, dequantize=True), "plain").notes) == [note]
    assert said(one.what for one in cs.check(path).row("scales").found)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("form", FORMS)
def test_codes_with_scales_that_fit_are_not(form: str, kind: str) -> None:
    path = model(form, kind, 1.0)
    assert not said(cs.inspect(path).notes)
    if kind in [*WEIGHTS][:2]:  # the other verbs look at the same codes with the same tests
        assert not said(cs.apply(cs.convert(path, dequantize=True), "plain").notes)
        assert not said(one.what for one in cs.check(path).row("scales").found)


@pytest.mark.parametrize("form", ["int8", "int4", "gptq"])
def test_slightly_smaller_scales_that_make_the_error_smallest_are_not(form: str) -> None:
    assert not said(cs.inspect(model(form, "normal", 0.85)).notes)


@pytest.mark.long
def test_verify_says_it_of_a_source_whose_codes_were_made_anew() -> None:
    clipped, healthy = model("int8", "normal", 0.25), model("int8", "normal", 1.0, "healthy")
    cs.apply(cs.average([clipped, healthy]), "mean")
    assert not said(cs.inspect("mean").notes)
    (note,) = [one for one in cs.verify("mean").notes if SAID in one.why]
    assert Path(note.name) == Path("m").resolve()
    cs.apply(cs.average([healthy, healthy]), "same")
    assert not [one for one in cs.verify("same").notes if SAID in one.why]
