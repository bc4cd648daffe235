"""Zero points and biases that are wrong shift the mean of weights, which is noted; healthy ones are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.decoders._scale_tests import lean_of, steps_off
from ckptsurgeon.tensors.odd_scales.kinds import NO_OFFSET, OPPOSED
from ckptsurgeon.tensors.odd_scales.notes import OddScales
from ckptsurgeon.tensors.odd_scales.shifted import (
    LEANING,
    OFF_BY_ONE,
    ONE_OFF,
    ONE_STEP,
    SHIFTED,
    UNCENTRED,
    UNCLEAR,
    WRONG_OFFSETS,
    one_off_names,
    shifted_names,
    uncentred_names,
)

from ...helpers.coded_matrices import SETTINGS, awq, gptq, mlx, old_mlx, save_model

Parts = dict[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
SHAPE, GROUP = (128, 256), 64
LAYERS = tuple(f"model.layers.{number}.mlp.up_proj" for number in range(5))


def weights(seed: int) -> torch.Tensor:
    """Rows of different sizes, a few of them with a mean of their own."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.exp(torch.randn(SHAPE[0], 1, generator=draw) / 4) / 50
    means = torch.randn(SHAPE[0], 1, generator=draw) * (torch.arange(SHAPE[0]) % 16 == 0)[:, None]
    return rows * (torch.randn(SHAPE, generator=draw) + means)


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of ``bits`` bits in each int32, along the last dimension, from the lowest bits."""
    single = codes.long()[..., None] >> torch.arange(bits) & 1
    packed = (single.flatten(-2).unflatten(-1, (-1, 32)) << torch.arange(32)).sum(-1)
    return packed.to(torch.uint32).view(torch.int32)


def asymmetric(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned codes, scales and zero points."""
    groups, top = weight.unflatten(-1, (-1, group)), 2**bits - 1
    scale = (groups.amax(-1) - groups.amin(-1)) / top
    zero = torch.round(-groups.amin(-1) / scale).clamp(0, top)
    codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, top)
    return codes.flatten(-2), scale, zero


def packed(weight: torch.Tensor, bits: int, change: Change = torch.clone) -> Parts:
    codes, scale, zero = asymmetric(weight, bits, GROUP)
    return {
        ".weight_packed": words(codes, bits), ".weight_scale": scale.half(),
        ".weight_zero_point": words((change(zero) % 2**bits).T.contiguous(), bits).T.contiguous(),
        ".weight_shape": torch.tensor(weight.shape),
    }  # fmt: skip


def int8(weight: torch.Tensor, change: Change = torch.clone) -> Parts:
    codes, scale, zero = asymmetric(weight, 8, SHAPE[1])
    signed = (change(zero) - 128).clamp(-128, 127).to(torch.int8)
    return {".weight": (codes - 128).to(torch.int8), ".weight_scale": scale, ".weight_zero_point": signed}


def off_in_awq(weight: torch.Tensor) -> Parts:
    """Zero points minus one, as GPTQ stores them."""
    parts = awq(weight)
    return {**parts, ".qzeros": parts[".qzeros"] - 0x11111111}


def negated(parts: Parts) -> Parts:
    return {**parts, ".biases": -parts[".biases"]}


def compressed(bits: int, kind: str) -> dict[str, Any]:
    scheme = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    if kind == "int-quantized":
        scheme.update(strategy="channel", group_size=None)
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed", "ignore": [],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }  # fmt: skip


def half(bits: int) -> Change:
    return lambda zero: zero + 2 ** (bits - 1)


def one_off(zero: torch.Tensor) -> torch.Tensor:
    return zero + 1


Case = tuple[dict[str, Any], Callable[[torch.Tensor], Parts], Callable[[torch.Tensor], Parts], str]
CASES: dict[str, Case] = {
    **{
        f"packed, {bits} bits": (
            compressed(bits, "pack-quantized"),
            partial(packed, bits=bits),
            partial(packed, bits=bits, change=half(bits)),
            WRONG_OFFSETS,
        )
        for bits in (2, 4, 8)
    },
    "packed, off by one": (
        compressed(4, "pack-quantized"), partial(packed, bits=4), partial(packed, bits=4, change=one_off), OFF_BY_ONE,
    ),
    "int8": (compressed(8, "int-quantized"), int8, partial(int8, change=lambda zero: zero + 40), OFF_BY_ONE),
    "awq": (SETTINGS["awq"], awq, off_in_awq, OFF_BY_ONE),
    "gptq": (SETTINGS["gptq"], gptq, lambda one: {**gptq(one), ".qzeros": gptq(one)[".qzeros"] + 0x11111111}, OFF_BY_ONE),
    **{
        f"mlx, {bits} bits": (
            {"group_size": GROUP, "bits": bits},
            partial(old_mlx, bits=bits),
            lambda one, bits=bits: negated(old_mlx(one, bits=bits)),
            OFF_BY_ONE,
        )
        for bits in (2, 3, 4, 8)
    },
    "new mlx": (SETTINGS["mlx"], mlx, partial(mlx, bits=4), ""),
}  # fmt: skip


def model(case: str, wrong: int) -> Path:
    """A model in which the last ``wrong`` of five layers have wrong zero points or biases."""
    settings, right, odd, _ = CASES[case]
    first = len(LAYERS) - wrong
    coded = {name: (right if at < first else odd)(weights(at)) for at, name in enumerate(LAYERS)}
    return save_model(Path("m"), settings, coded)


def said(path: Path) -> list[tuple[str, list[str]]]:
    """What notes say about means, and which weights ``ckpt check`` warns of, by verb."""
    verbs = {
        "convert": cs.apply(cs.convert(path, dequantize=True), "out.safetensors", force=True).notes,
        "copy": cs.apply(cs.convert(path), "copy", force=True).notes,
        "inspect": cs.inspect(path, stats=True).notes,
    }
    found = [(verb, [one for one in told if is_meant(one)]) for verb, told in verbs.items()]
    rows = cs.check(path, skip=["model-card", "class-tensors"]).rows
    warned = [[f"{one.what}: {', '.join(one.keys)}"] for row in rows for one in row.found if is_meant(one.what)]
    return [*((verb, told) for verb, told in found if told), *(("check", one) for one in warned)]


def is_meant(note: str) -> bool:
    return OFF_BY_ONE in note or WRONG_OFFSETS in note


@pytest.mark.costly
@pytest.mark.parametrize("case", CASES)
def test_right_zero_points_and_biases_are_not_noted(case: str) -> None:
    assert not said(model(case, 0))


@pytest.mark.costly
@pytest.mark.parametrize("case", [case for case, one in CASES.items() if one[-1]])
def test_wrong_zero_points_and_biases_are_noted(case: str) -> None:
    found = said(model(case, len(LAYERS)))
    assert [verb for verb, _ in found] == ["convert", "copy", "inspect", "check"]
    for verb, told in found:
        (one,) = told
        assert CASES[case][-1] in one, verb
        assert "model.layers.0.mlp.up_proj.weight" in one


@pytest.mark.long
@pytest.mark.parametrize(("wrong", "number"), [(1, 1), (2, 2), (4, 4)])
def test_layers_unlike_their_siblings_are_noted(wrong: int, number: int) -> None:
    found = said(model("packed, 4 bits", wrong))
    assert [verb for verb, _ in found] == ["convert", "copy", "inspect", "check"]
    for _, told in found:
        assert len(told) == 1
        assert all(f"{name}.weight" in told[0] for name in LAYERS[-wrong:][:1])
    assert found[0][1][0].startswith(
        f"m: {number} of 5 decoded matrices {'has' if number == 1 else 'have'} {WRONG_OFFSETS}: "
    )


@pytest.mark.long
def test_the_mean_of_a_single_layer_is_not_noted() -> None:
    """The mean of a healthy matrix may be as large: only a shift by one step shows wrong zero points."""
    assert not said(model("packed, off by one", 1))


def one_step(path: Path) -> list[str]:
    """The verbs that say that a matrix is shifted by one step."""
    notes = {
        "convert": cs.apply(cs.convert(path, dequantize=True), "out.safetensors", force=True).notes,
        "copy": cs.apply(cs.convert(path), "copy", force=True).notes,
        "inspect": cs.inspect(path, stats=True).notes,
        "check": [one.what for one in cs.check(path, skip=["class-tensors"]).row("weight-size").found],
    }
    return [verb for verb, told in notes.items() if any(ONE_STEP in one for one in told)]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("case", "wrong", "is_noted"),
    [
        *(("packed, off by one", wrong, 0 < wrong < 3) for wrong in (0, 1, 2, 3)),
        ("awq", 1, True), ("gptq", 1, True), ("packed, 4 bits", 0, False), ("int8", 1, False), ("mlx, 4 bits", 1, False),
    ],
)  # fmt: skip
def test_a_layer_that_is_one_step_off_is_noted(case: str, wrong: int, is_noted: bool) -> None:
    """At least three others must not be shifted. Codes of 8 bits have steps that are too small, MLX's biases none."""
    path = model(case, wrong)
    assert one_step(path) == (["convert", "copy", "inspect", "check"] if is_noted else [])


@pytest.mark.long
@pytest.mark.parametrize("axis", [0, 1])
def test_half_of_a_matrix_that_is_one_step_off_is_noted(axis: int) -> None:
    coded = {name: packed(weights(at), 4) for at, name in enumerate(LAYERS)}
    wrong = packed(weights(4), 4, one_off)
    zeros, other = (one[".weight_zero_point"] for one in (coded[LAYERS[4]], wrong))
    zeros.narrow(axis, 0, zeros.shape[axis] // 2).copy_(other.narrow(axis, 0, zeros.shape[axis] // 2))
    path = save_model(Path("m"), compressed(4, "pack-quantized"), coded)
    assert {"convert", "inspect", "check"} <= {*one_step(path)}


def test_shifts_of_several_groups_and_of_few_runs_are_not_measured() -> None:
    """Columns in the order of GPTQ's act-order have steps of other groups beside them."""
    one = torch.arange(16) - 7.0
    rows = one[torch.randint(0, 16, (128, 128), generator=torch.Generator().manual_seed(0))].numpy()
    assert abs(steps_off(rows) - 0.5) < 0.7
    assert steps_off(rows + 2) > 2
    mixed = rows * np.random.default_rng(0).uniform(0.5, 1, 128).astype("f4")
    assert steps_off(mixed) == 0
    assert steps_off(rows[:4]) == steps_off(rows[:, :16]) == steps_off(np.zeros((128, 128), "f4")) == 0
    assert steps_off(np.full((128, 128), np.nan, "f4")) == 0


def test_an_unclear_shift_in_a_role_says_nothing() -> None:
    every = [f"layers.{number}.up" for number in range(5)]
    assert one_off_names({ONE_OFF: every[:1]}, every) == {every[0]}
    assert one_off_names({ONE_OFF: every[:2]}, every) == {*every[:2]}
    assert not one_off_names({ONE_OFF: every[:3]}, every)
    assert not one_off_names({ONE_OFF: every[:1], UNCLEAR: every[4:]}, every)
    seen = OddScales()
    for name, shift in zip(every, (1.0, 0.1, -0.1, 0.2, 0), strict=True):
        seen.add_size(name, 0.3, lambda: False)
        seen.add_shift(name, shift)
    assert any(ONE_STEP in one for one in seen.notes("m"))
    seen.add_shift(every[1], -2)
    assert not seen.notes("m")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:torch.quantize_per_channel")
@pytest.mark.parametrize("has_channels", [False, True])
@pytest.mark.parametrize(
    ("shape", "off", "is_noted"), [(SHAPE, 0, False), (SHAPE, 40, True), ((128, 16, 4, 4), 40, False)]
)
def test_those_of_torch_are_noted(has_channels: bool, shape: tuple[int, ...], off: int, is_noted: bool) -> None:
    """Also if a tensor has only one zero point, a number in the pickle. A small convolution may have any mean."""
    state: dict[str, torch.Tensor] = {}
    for number, name in enumerate(LAYERS):
        one = weights(number).reshape(shape)
        step = float(one.abs().max()) / 127
        scales, zeros = torch.full((shape[0],), step), torch.zeros(shape[0], dtype=torch.int64)
        one = one + off * step
        state[f"{name}.weight"] = (
            torch.quantize_per_channel(one, scales, zeros, 0, torch.qint8)
            if has_channels
            else torch.quantize_per_tensor(one, step, 0, torch.qint8)
        )
    torch.save(state, "q.pth")
    told = cs.apply(cs.convert("q.pth", dequantize=True), "out.safetensors").notes
    assert any(OFF_BY_ONE in one for one in told) is is_noted


@pytest.mark.parametrize(("off", "is_noted"), [(0, False), (40, True)])
def test_those_of_torchao_are_noted(off: int, is_noted: bool) -> None:
    state, metadata = dict[str, torch.Tensor](), {}
    for number, name in enumerate(LAYERS):
        parts = int8(weights(number), lambda zero: zero + off)
        codes, scale, zero = parts.values()
        of = {"qdata": codes, "scale": scale, "zero_point": zero}
        state.update((f"{name}._weight_{role}", one) for role, one in of.items())
        fields = {"block_size": [1, SHAPE[1]]}
        metadata[f"{name}.weight"] = json.dumps(
            {"_type": "IntxUnpackedToInt8Tensor", "_data": fields, "_tensor_data_names": [*of]}
        )
    save_file(state, "ao.safetensors", {**metadata, "tensor_names": json.dumps([*metadata])})
    told = cs.apply(cs.convert("ao.safetensors", dequantize=True), "out.safetensors").notes
    assert any(OFF_BY_ONE in one for one in told) is is_noted


@pytest.mark.costly
@pytest.mark.parametrize(
    "case", ["packed, 2 bits", "packed, 4 bits", "packed, 8 bits", "awq", "gptq", "mlx, 2 bits", "new mlx"]
)
def test_the_real_network_has_groups_around_0(case: str, minilm: Path) -> None:
    settings, encode, _, _ = CASES[case]
    state = load_file(minilm / "model.safetensors")
    keys = [key for key, one in state.items() if one.dim() == 2 and re.search(r"\.layer\.[135]\.", key)]
    save_model(Path("m"), settings, {key.removesuffix(".weight"): encode(state[key].float()) for key in keys})
    assert len(keys) == 18
    notes = cs.apply(cs.convert("m", dequantize=True), "out.safetensors").notes
    assert not [one for one in notes if is_meant(one) or ONE_STEP in one]


def test_siblings_must_be_far_lower_and_several() -> None:
    every = [f"layers.{number}.up" for number in range(4)]
    assert uncentred_names({UNCENTRED: every[:1]}, every) == {every[0]}
    assert uncentred_names({UNCENTRED: every[:2]}, every) == set(every[:2])
    assert not uncentred_names({UNCENTRED: every[:1], LEANING: every[:2]}, every)
    assert not uncentred_names({UNCENTRED: every[:1], SHIFTED[True]: every[3:]}, every)
    assert not uncentred_names({UNCENTRED: every[:1]}, every[:2])
    assert not uncentred_names({UNCENTRED: ["embed"]}, [*every, "embed"])


def test_what_another_note_explains_is_not_said_again() -> None:
    every = [f"layers.{number}.up" for number in range(4)]
    assert uncentred_names({UNCENTRED: every}, every) == set(every)
    assert not uncentred_names({UNCENTRED: every, NO_OFFSET: every}, every)
    assert shifted_names({SHIFTED[True]: every, SHIFTED[False]: [], OPPOSED: every[1:]}, 4) == {every[0]}


@pytest.mark.parametrize(("bits", "outlier"), [(2, 15), (3, 40), (4, 60)])
def test_groups_with_outliers_do_not_lean(bits: int, outlier: int) -> None:
    """Most weights of a group have the code that is nearest to 0, and not equal to it in the first versions of MLX."""
    one = np.random.default_rng(0).normal(size=(64, 512)).astype("f4")
    one[:, ::128] = outlier * (1 + np.random.default_rng(1).random((64, 4)))
    groups = one.reshape(64, 4, 128)
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale = (high - low) / (2**bits - 1)
    coded = (np.round((groups - low) / scale) * scale + low).reshape(one.shape)
    assert lean_of(coded) < 0.4
    assert lean_of(coded + 3 * scale.max()) > 1


@pytest.mark.parametrize("shape", [(4, 32), (64, 16), (1, 100)])
def test_small_matrices_do_not_lean(shape: tuple[int, int]) -> None:
    assert lean_of(np.random.default_rng(0).normal(5, 1, size=shape).astype("f4")) == 0
    assert lean_of(np.ones((64, 64), "f4")) == 0
    assert lean_of(np.full((64, 64), np.nan, "f4")) == 0


def test_a_part_around_0_shows_that_a_matrix_does_not_lean() -> None:
    """Neurons with weights of one sign may stand together."""
    seen = OddScales()
    names = [f"layers.{number}.up" for number in range(4)]
    for name in names:
        seen.add_size(name, 0.3, lambda: False)
        seen.add_lean(name, 2.0)
    assert any(WRONG_OFFSETS in one for one in seen.notes("m"))
    for name in names:
        seen.add_lean(name, 0.1)
        seen.add_lean(name, 2.0)
    assert not seen.notes("m")
