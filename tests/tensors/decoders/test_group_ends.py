"""Codes in other groups than those that their scales were made for, and scales that were rounded without the codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.odd_scales.group_ends import ENDS, OF_POWERS, moved_codes, rounded_scales

SIZE, BLOCK, LAYERS = 256, 128, 3
MOVED = "groups without the largest code, unlike other tensors of the model"
ROUNDED = "scales that are powers of two, although nearly every group has the largest code"
ROLES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj")
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
Layer = tuple[torch.Tensor, torch.Tensor]


def codes(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = (weight / scale).clamp(-LARGEST[dtype], LARGEST[dtype])
    return (values.round() if dtype == torch.int8 else values).to(dtype)


def by_row(weight: torch.Tensor, dtype: torch.dtype) -> Layer:
    scale = weight.abs().amax(1, keepdim=True) / LARGEST[dtype]
    return codes(weight, scale, dtype), scale


def by_block(weight: torch.Tensor, *, power: str = "") -> Layer:
    blocks = weight.reshape(SIZE // BLOCK, BLOCK, -1, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    if power:
        scale = 2.0 ** getattr(torch, power)(scale.log2())
    made = codes(blocks, scale, torch.float8_e4m3fn)
    return made.reshape(SIZE, SIZE), scale[:, 0, :, 0].contiguous()


def model(layers: list[Layer], *, blocks: bool = False) -> str:
    """Save the layers, with the settings of compressed-tensors or of DeepSeek-V3."""
    state = {}
    for number, (made, scale) in enumerate(layers):
        key = f"model.layers.{number // len(ROLES)}.{ROLES[number % len(ROLES)]}.weight"
        state |= {key: made.contiguous(), key + ("_scale_inv" if blocks else "_scale"): scale}
    settings: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    if not blocks:
        kind = "int" if layers[0][0].dtype == torch.int8 else "float"
        weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        settings = {"quant_method": "compressed-tensors", "format": f"{kind}-quantized", "config_groups": groups}
    Path("m").mkdir()
    save_file(state, "m/model.safetensors", {"format": "pt"})
    Path("m/config.json").write_text(json.dumps({"model_type": "my_own", "quantization_config": settings}))
    return "m"


def weights() -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, SIZE, generator=made) * 0.01 * (1 + at % 5) for at in range(LAYERS * len(ROLES))]


def said(path: str, words: str) -> list[str]:
    """The note of a verb that copies, of one that decodes, and of check."""
    copied, decoded = cs.convert(path).notes, cs.apply(cs.convert(path, dequantize=True), "plain", force=True).notes
    checked = [one.what for one in cs.check(path).row("scales").found]
    return [one for notes in (copied, decoded, checked) for one in notes if words in one]


@pytest.mark.costly
@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_codes_that_were_transposed_without_their_scales_are_said(dtype: torch.dtype) -> None:
    layers = [by_row(one, dtype) for one in weights()]
    turned = [(made.T if at % 4 < 2 else made, scale) for at, (made, scale) in enumerate(layers)]
    notes = said(model(turned), MOVED)
    assert len(notes) == 3
    number = (
        "[3-6]" if dtype == torch.float8_e5m2 else "6"
    )  # so few codes that many rows have the largest one by chance
    assert re.match(f"m: {number} quantised tensors have {MOVED}: perhaps the codes belong to other scales", notes[0])


@pytest.mark.costly
@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_codes_with_their_own_scales_are_not(dtype: torch.dtype) -> None:
    layers = [by_row(one, dtype) for one in weights()]
    layers[0][0][:100] = 0
    layers[0][1][:100] = 1
    assert not said(model(layers), MOVED)


@pytest.mark.long
def test_scales_with_room_in_all_tensors_are_not() -> None:
    layers = [by_row(one, torch.int8) for one in weights()]
    assert not said(model([((made * 0.9).to(torch.int8), scale / 0.9) for made, scale in layers]), MOVED)


@pytest.mark.long
def test_scales_that_were_rounded_to_powers_of_two_are_said() -> None:
    layers = [by_block(one) for one in weights()]
    notes = said(model([(made, 2.0 ** scale.log2().ceil()) for made, scale in layers], blocks=True), ROUNDED)
    assert len(notes) == 3
    assert notes[0].startswith(f"m: 12 quantised tensors have {ROUNDED}: perhaps the scales were rounded")


@pytest.mark.costly
@pytest.mark.parametrize("power", ["", "ceil", "floor", "round"])
def test_powers_of_two_with_which_codes_were_made_are_not(power: str) -> None:
    path = model([by_block(one, power=power) for one in weights()], blocks=True)
    assert not said(path, ROUNDED)
    assert not said(path, MOVED)


def test_parts_of_a_tensor_are_counted_together() -> None:
    usual = {f"{ENDS}32/32": ["a", "b", "c", "d"]}
    assert moved_codes([{**usual, f"{ENDS}12/16": ["e"]}, {f"{ENDS}13/16": ["e"]}]) == {"e"}
    assert not moved_codes([{**usual, f"{ENDS}13/16": ["e"]}, {f"{ENDS}14/16": ["e"]}])
    assert not moved_codes([{**usual, f"{ENDS}6/16": ["layers.0.experts.7.up_proj.weight"]}])
    assert not moved_codes([{f"{ENDS}32/32": ["a", "b", "c"], f"{ENDS}6/16": ["e"]}])
    assert not moved_codes([{**usual, f"{ENDS}6/16": ["e", "f", "g", "h", "i", "j", "k", "l", "m"]}])


def test_scales_of_all_tensors_are_judged_together() -> None:
    some = {f"{OF_POWERS}-9:-9^4/4": ["a", "b", "c"]}
    assert rounded_scales([some, {f"{OF_POWERS}-8:-8^3/4": ["d"]}]) == {"a", "b", "c", "d"}
    assert not rounded_scales([some, {f"{OF_POWERS}-9:-9^4/4": ["d"]}])
    assert not rounded_scales([some, {f"{OF_POWERS}-8:-8^0/4": ["d"]}])
    assert not rounded_scales([some])
