"""Packed words that were averaged as plain numbers: said, and never of codes that a method of quantisation wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptsurgeon.tensors.odd_scales.averaged_words import AVERAGED, SPREAD, averaged_names

from ...helpers.coded_matrices import SETTINGS, Encode, awq, gptq, mlx, nf4
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, statuses, write_model

State = dict[str, torch.Tensor]


def int4(weight: torch.Tensor) -> State:
    """The codes of compressed-tensors, packed along the inputs of each row."""
    parts = gptq(weight)
    codes, scale = parts[".qweight"].T.contiguous(), parts[".scales"].T.contiguous()
    return {".weight_packed": codes, ".weight_scale": scale, ".weight_shape": torch.tensor(weight.shape)}


INT4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}}},
}  # fmt: skip
ENCODERS: dict[str, tuple[Encode, dict[str, Any]]] = {
    "gptq": (gptq, SETTINGS["gptq"]),
    "awq": (awq, SETTINGS["awq"]),
    "int4": (int4, INT4),
    "nf4": (nf4, SETTINGS["nf4"]),
    "mlx": (mlx, SETTINGS["mlx"]),
    "mlx of 8 bits": (partial(mlx, bits=8), {"group_size": 64, "bits": 8}),
    "mlx of 2 bits": (partial(mlx, bits=2), {"group_size": 64, "bits": 2}),
}


def tuned(encode: Encode, change: float, draw: torch.Generator) -> Encode:
    """Encode a weight that further training changed by this share of its size."""
    return lambda weight: encode(weight + torch.randn(weight.shape, generator=draw) * weight.std() * change)


def averaged(one: State, other: State) -> State:
    """The means of the stored numbers, as a program computes them that knows of no codes."""

    def mean(key: str) -> torch.Tensor:
        if key.endswith("__nf4"):  # JSON, not numbers
            return one[key]
        both = (one[key].double() + other[key].double()) / 2
        is_unsigned = one[key].dtype == torch.uint32  # torch casts no large number to it
        return both.long().to(torch.uint32) if is_unsigned else both.to(one[key].dtype)

    return {key: mean(key) for key in one}


@pytest.mark.costly
@pytest.mark.parametrize("name", ENCODERS)
def test_averages_of_words_are_said(name: str) -> None:
    encode, settings = ENCODERS[name]
    state = coded_tensors(encode, layers=4)
    other = coded_tensors(tuned(encode, 0.2, torch.Generator().manual_seed(1)), layers=4)
    assert false_alarms(write_model(Path("m"), other, settings), AVERAGED) == []
    path = write_model(Path("m"), averaged(state, other), settings)
    assert said_by(path, AVERAGED) == [*QUICK]
    assert statuses(path, AVERAGED) == ["WARN"]


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ENCODERS)
def test_inputs_of_different_sizes_are_not(name: str, seed: int) -> None:
    """All layers have the same large inputs, so that the codes of some places are wider in all of them."""
    encode, settings = ENCODERS[name]
    draw = torch.Generator().manual_seed(seed)
    sizes = {width: torch.exp(torch.randn(width, generator=draw) * 0.3) for width in (128, 256)}
    state = coded_tensors(lambda weight: encode(weight * sizes[weight.shape[1]]), layers=4)
    assert false_alarms(write_model(Path("m"), state, settings), AVERAGED) == []


def kinds(*spreads: float) -> dict[str, list[str]]:
    return {f"{SPREAD}{one!r}": [f"layers.{at}"] for at, one in enumerate(spreads)}


def test_most_tensors_have_to_be_alike() -> None:
    assert averaged_names([kinds(-0.04, -0.05, -0.06, -0.07, -0.08, -0.09)]) == {f"layers.{at}" for at in range(6)}
    assert averaged_names([kinds(0.04, 0.05, 0.06, 0.07, 0.08, 0.09)])
    assert not averaged_names([kinds(-0.04, -0.05, -0.06, -0.07, -0.08)])
    assert not averaged_names([kinds(-0.05, -0.06, -0.07, -0.08, 0.0, 0.001)])
    assert not averaged_names([kinds(-0.01, -0.011, -0.012, -0.013, -0.014, -0.015)])
    assert not averaged_names([])


@pytest.mark.long
def test_all_verbs_say_so() -> None:
    state = coded_tensors(gptq, layers=4)
    other = coded_tensors(tuned(gptq, 0.2, torch.Generator().manual_seed(1)), layers=4)
    assert silent(write_model(Path("m"), averaged(state, other), SETTINGS["gptq"]), AVERAGED) == []
