"""Dtypes that a format of compressed-tensors does not have are said, although all layers have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

Change = Callable[[torch.Tensor], torch.Tensor]
EXPONENTS = "loaders take these numbers for exponents"
COPIES = "ckpt cannot decode them, and a loader can do so only if it copies the values"


def model(scheme: str) -> Path:
    """A folder of three layers that ckpt has quantised."""
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)]
    Path("plain").mkdir()
    Path("plain/config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    save_file({name: torch.randn(128, 128, generator=draw) / 20 for name in names}, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "model")
    return Path("model")


def changed(folder: Path, end: str, change: Change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({key: change(one) if key.endswith(end) else one for key, one in state.items()}, path, {"format": "pt"})


@pytest.mark.costly
@pytest.mark.parametrize(
    ("scheme", "end", "change", "said", "status"),
    [
        (
            "mxfp4",
            "weight_scale",
            lambda one: torch.exp2(one.float() - 127).bfloat16(),
            f"weight_scale in bfloat16, but the format mxfp4-pack-quantized has uint8 exponents: {EXPONENTS}",
            "FAIL",
        ),
        (
            "mxfp4",
            "weight_packed",
            lambda one: one.view(torch.int8),
            f"weight_packed in int8, but the format mxfp4-pack-quantized has uint8: {COPIES}",
            "WARN",
        ),
        (
            "nvfp4",
            "weight_scale",
            lambda one: one.bfloat16(),
            f"weight_scale in bfloat16, but the format nvfp4-pack-quantized has float8_e4m3fn: {COPIES}",
            "WARN",
        ),
        ("int8", "weight", lambda one: one.int(), f"weight in int32, but the format int-quantized has int8: {COPIES}", "WARN"),
    ],
)  # fmt: skip
def test_a_dtype_that_the_format_does_not_have_is_said(
    scheme: str, end: str, change: Change, said: str, status: str
) -> None:
    folder = model(scheme)
    changed(folder, end, change)
    notes = cs.inspect(folder).notes
    assert [one for one in notes if f"3 quantised tensors have {said}: model.layers.0" in one] == [*notes]
    assert any(said in one for one in cs.convert(folder).notes)
    row = cs.check(folder).row("quantisation")
    assert row.status.value == status
    assert said in row.found[0].what


@pytest.mark.parametrize(
    ("scheme", "end", "change"),
    [
        *((scheme, "", torch.clone) for scheme in ("mxfp4", "nvfp4", "int8", "int4-group128", "fp8-channel", "fp8-block")),
        ("mxfp4", "weight_scale", lambda one: one.view(torch.float8_e8m0fnu)),
        ("int8", "weight_scale", torch.Tensor.float),
        ("fp8-channel", "weight_scale", torch.Tensor.half),
        ("int4-group128", "weight_scale", torch.Tensor.half),
    ],
)  # fmt: skip
def test_dtypes_that_the_format_has_are_no_fault(scheme: str, end: str, change: Change) -> None:
    folder = model(scheme)
    changed(folder, end, change)
    assert not cs.inspect(folder).notes
