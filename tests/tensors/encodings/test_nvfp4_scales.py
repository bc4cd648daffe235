"""Scales of nvfp4 that were cast to another dtype are said: loaders have no other, or would round them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ...helpers.coded_models import coded_tensors, silent, write_model
from ...helpers.modelopt_models import NVFP4, hf_quant_config, nvfp4

State = dict[str, torch.Tensor]
ONE = "model.layers.3.mlp.up_proj"
WEIGHTS = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
}  # fmt: skip


def packed(weight: torch.Tensor) -> State:
    """As compressed-tensors stores nvfp4: codes are divided by the scale of the whole weight."""
    parts = nvfp4(weight)
    return {
        ".weight_packed": parts[".weight"], ".weight_scale": parts[".weight_scale"],
        ".weight_global_scale": 1 / parts[".weight_scale_2"].reshape(1),
    }  # fmt: skip


CASES: dict[str, tuple[Callable[[torch.Tensor], State], dict[str, Any], str]] = {
    "modelopt": (nvfp4, dict(NVFP4), "weight_scale_2"),
    "compressed-tensors": (packed, COMPRESSED, "weight_global_scale"),
}


def cast(state: State, end: str, dtype: torch.dtype, part: str) -> State:
    def is_meant(key: str) -> bool:
        return key.startswith(part) and key.endswith(f".{end}")

    return {key: one.to(dtype) if is_meant(key) else one for key, one in state.items()}


def said(path: Path) -> list[str]:
    return [note for note in cs.inspect(path).notes if "quantised tensor" in note]


@pytest.mark.costly
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2, torch.float32])
def test_scales_of_blocks_in_another_dtype_are_said(case: str, dtype: torch.dtype) -> None:
    encode, settings, _ = CASES[case]
    state = coded_tensors(encode)
    assert said(write_model(Path("m"), state, settings)) == []
    path = write_model(Path("m"), cast(state, "weight_scale", dtype, ONE), settings)
    name = str(dtype).removeprefix("torch.")
    assert said(path) == [
        f"m: 1 quantised tensor has weight_scale in {name}, but nvfp4 has float8_e4m3fn: {ONE}.weight"
    ]
    all_of_them = write_model(Path("m"), cast(state, "weight_scale", dtype, "model."), settings)
    assert any(f"28 quantised tensors have weight_scale in {name}" in one for one in said(all_of_them))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_of_a_whole_weight_unlike_the_others_is_said(case: str, dtype: torch.dtype) -> None:
    encode, settings, end = CASES[case]
    path = write_model(Path("m"), cast(coded_tensors(encode), end, dtype, ONE), settings)
    name = str(dtype).removeprefix("torch.")
    assert silent(path, f"1 quantised tensor has {end} in {name}, but 27 similar tensors have float32: {ONE}") == []


@pytest.mark.long
def test_it_is_said_by_verbs_that_copy() -> None:
    state = cast(coded_tensors(nvfp4), "weight_scale", torch.bfloat16, ONE)
    path = write_model(Path("m"), state, None, hf_quant_config("NVFP4"))
    notes = (
        cs.convert(path).notes,
        cs.diff(path, path).notes,
        [one.what for one in cs.check(path).row("quantisation").found],
    )
    assert all(any("weight_scale in bfloat16" in one for one in each) for each in notes)


def test_other_encodings_with_two_scales_may_have_other_dtypes() -> None:
    """ModelOpt's W4A8_AWQ has a ``weight_scale_2``, too, for its scales of another dtype."""

    def awq(weight: torch.Tensor) -> State:
        scale = weight.unflatten(-1, (-1, 128)).abs().amax(-1) / 7
        codes = torch.randint(0, 256, (weight.shape[0], weight.shape[1] // 2)).to(torch.uint8)
        return {
            ".weight": codes,
            ".weight_scale": scale.half(),
            ".weight_scale_2": torch.tensor(0.5),
            ".input_scale": torch.ones(()),
        }

    path = write_model(Path("m"), coded_tensors(awq), {**NVFP4, "quant_algo": "W4A8_AWQ"})
    assert not [one for one in said(path) if "nvfp4" in one]
    state = {**coded_tensors(nvfp4), **{key: one for key, one in coded_tensors(awq).items() if ".layers.3." in key}}
    path = write_model(Path("m"), state, {**NVFP4, "quant_algo": "MIXED_PRECISION", "quantized_layers": {}})
    assert not [one for one in said(path) if "nvfp4" in one]
