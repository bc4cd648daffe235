"""Zero points and column orders that do not belong to the codes of their groups: said, and never of those that do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckptsurgeon.tensors.decoders._group_codes import _judged
from ckptsurgeon.tensors.odd_scales.group_codes import (
    ASYMMETRIC,
    LOST_ZEROS,
    SYMMETRIC,
    UNFIT,
    UNFIT_ZEROS,
    lost_zero_points,
)

from ...helpers import coded_matrices, coded_models
from ...helpers.coded_matrices import SETTINGS, Encode, awq, gptq, mlx, old_mlx
from ...helpers.coded_models import QUICK, coded_tensors, false_alarms, said_by, silent, statuses, write_model
from .test_wrong_offsets import asymmetric, compressed, packed, words

State = dict[str, torch.Tensor]
GROUP = 32
ASYMMETRIC_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
LOST_GPTQ = {**SETTINGS["gptq"], "group_size": GROUP}
TEXTS = (UNFIT_ZEROS, LOST_ZEROS)


def orders(width: int, draw: torch.Generator) -> torch.Tensor:
    """A ``g_idx`` of columns that were sorted before they were cut into groups."""
    return torch.empty(width, dtype=torch.int32).index_copy_(
        0, torch.randperm(width, generator=draw), torch.arange(width, dtype=torch.int32) // GROUP
    )


def ordered_gptq(weight: torch.Tensor, *, bits: int = 4, is_ordered: bool = True) -> State:
    """Asymmetric GPTQ, with ``desc_act`` unless ``is_ordered`` is false; zero points are stored less 1."""
    width = weight.shape[1]
    order = orders(width, torch.Generator().manual_seed(width)) if is_ordered else torch.arange(width) // GROUP
    by_group = torch.argsort(order, stable=True)
    codes, scale, zero = asymmetric(weight[:, by_group].float(), bits, GROUP)
    codes = torch.empty_like(codes).index_copy_(1, by_group, codes)
    return {
        ".qweight": words(codes, bits).T.contiguous(), ".qzeros": words((zero - 1).T.contiguous() % 2**bits, bits),
        ".scales": scale.T.contiguous().half(), ".g_idx": order.int(),
    }  # fmt: skip


def symmetric_gptq(weight: torch.Tensor, *, clipped: float = 1.0) -> State:
    """Symmetric GPTQ whose scales are too small by ``clipped``, as a search for the smallest error makes them."""
    return gptq(
        weight.clamp(-clipped * weight.abs().amax(1, keepdim=True), clipped * weight.abs().amax(1, keepdim=True))
    )


HEALTHY: dict[str, tuple[Encode, dict[str, Any]]] = {
    "gptq": (gptq, SETTINGS["gptq"]),
    "clipped gptq": (partial(symmetric_gptq, clipped=0.8), SETTINGS["gptq"]),
    "asymmetric gptq": (partial(ordered_gptq, is_ordered=False), {**ASYMMETRIC_GPTQ, "desc_act": False}),
    "ordered gptq": (ordered_gptq, ASYMMETRIC_GPTQ),
    "ordered gptq of 8 bits": (partial(ordered_gptq, bits=8), {**ASYMMETRIC_GPTQ, "bits": 8}),
    "awq": (awq, SETTINGS["awq"]),
    **{f"mlx of {bits} bits": (partial(mlx, bits=bits), {"group_size": 64, "bits": bits}) for bits in (2, 4, 8)},
    "old mlx": (old_mlx, SETTINGS["mlx"]),
    **{f"packed, {bits} bits": (partial(packed, bits=bits), compressed(bits, "pack-quantized")) for bits in (2, 4, 8)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_zero_points_that_fit_are_not_said(name: str) -> None:
    encode, settings = HEALTHY[name]
    path = write_model(Path("m"), coded_tensors(encode, layers=4), settings)
    for text in TEXTS:
        assert false_alarms(path, text) == []


def exchanged(state: State, end: str) -> State:
    """Each part with this ending is that of another layer."""
    keys = [key for key in state if key.endswith(f"down_proj{end}")]
    return {**state, **{key: state[other] for key, other in zip(keys, [*keys[1:], keys[0]], strict=True)}}


def other_order(state: State) -> State:
    """The column order of another matrix with as many columns."""
    draw = torch.Generator().manual_seed(7)
    return {key: orders(len(one), draw) if key.endswith("down_proj.g_idx") else one for key, one in state.items()}


def lost(state: State) -> State:
    """All zero points are 8, as in symmetric quantisation (GPTQ stores 7)."""
    middles = {".qzeros": 0x77777777, ".weight_zero_point": 0x88888888 - (1 << 32)}
    return {
        key: torch.full_like(one, next((word for end, word in middles.items() if key.endswith(end)), 0))
        if key.endswith(tuple(middles)) else one
        for key, one in state.items()
    }  # fmt: skip


def lost_in_awq(state: State) -> State:
    return {
        key: torch.full_like(one, 0x88888888 - (1 << 32)) if key.endswith("qzeros") else one
        for key, one in state.items()
    }


WRONG: dict[str, tuple[Encode, dict[str, Any], Callable[[State], State], str]] = {
    "the order of another matrix": (ordered_gptq, ASYMMETRIC_GPTQ, other_order, UNFIT_ZEROS),
    "gptq's zero points of another layer": (
        partial(ordered_gptq, is_ordered=False), {**ASYMMETRIC_GPTQ, "desc_act": False},
        partial(exchanged, end=".qzeros"), UNFIT_ZEROS,
    ),
    "awq's": (awq, SETTINGS["awq"], partial(exchanged, end=".qzeros"), UNFIT_ZEROS),
    "packed ones": (
        partial(packed, bits=4), compressed(4, "pack-quantized"), partial(exchanged, end=".weight_zero_point"),
        UNFIT_ZEROS,
    ),
    "mlx's scales and biases": (
        mlx, SETTINGS["mlx"], lambda state: exchanged(exchanged(state, ".scales"), ".biases"), UNFIT_ZEROS,
    ),
    "lost by gptq": (partial(ordered_gptq, is_ordered=False), LOST_GPTQ, lost, LOST_ZEROS),
    "lost by awq": (awq, SETTINGS["awq"], lost_in_awq, LOST_ZEROS),
    "lost by packed": (partial(packed, bits=4), compressed(4, "pack-quantized"), lost, LOST_ZEROS),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_those_that_do_not_are(name: str) -> None:
    encode, settings, change, text = WRONG[name]
    path = write_model(Path("m"), change(coded_tensors(encode, layers=4)), settings)
    assert said_by(path, text) == [*QUICK]
    assert statuses(path, text) == ["FAIL"]


TABLE = "model.embed_tokens"


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("begin", [0, 180])
def test_rows_of_a_table_with_the_scales_of_the_next_rows_are_said(begin: int) -> None:
    """A token was cut out of the codes, but not of scales and biases: all rows after it are wrong."""
    state = coded_tensors(mlx, layers=4, tables=(TABLE,))
    assert false_alarms(write_model(Path("m"), state, SETTINGS["mlx"]), UNFIT_ZEROS) == []
    for end in (".scales", ".biases"):
        state[TABLE + end] = torch.cat([state[TABLE + end][:begin], state[TABLE + end][begin:].roll(-1, 0)])
    assert said_by(write_model(Path("m"), state, SETTINGS["mlx"]), UNFIT_ZEROS) == [*QUICK]


@pytest.mark.long
def test_groups_of_128_are_compared_in_samples_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample of a wide matrix has two groups of each row, and its first row begins a word of zero points."""
    monkeypatch.setattr(coded_matrices, "GROUP", 128)
    monkeypatch.setattr(coded_models, "ROLES", {"mlp.down_proj": (328, 1024)})
    settings = {**SETTINGS["awq"], "group_size": 128}
    state = coded_tensors(awq, layers=4)
    assert false_alarms(write_model(Path("m"), state, settings), UNFIT_ZEROS) == []
    assert said_by(write_model(Path("m"), exchanged(state, ".qzeros"), settings), UNFIT_ZEROS) == [*QUICK]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["gptq's zero points of another layer", "lost by gptq"])
def test_all_verbs_say_so(name: str) -> None:
    encode, settings, change, text = WRONG[name]
    assert silent(write_model(Path("m"), change(coded_tensors(encode, layers=4)), settings), text) == []


def drawn(shape: str, draw: np.random.Generator, rows: int, width: int) -> Any:
    return {"normal": draw.standard_normal, "heavy": partial(draw.standard_t, 4)}[shape]((rows, width))


def judged(weights: Any, size: int, bits: int, *, is_symmetric: bool = False, has_biases: bool = False) -> str | None:
    """The kind of weights that were quantised to nearest; with biases, 0 need not be between the ends of a group."""
    groups, top = weights.reshape(len(weights), -1, size), 2**bits - 1
    low, high = groups.min(-1), groups.max(-1)
    if not has_biases:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    if is_symmetric:
        low, high = -np.maximum(-low, high), np.maximum(-low, high)
    scale = (high - low) / top
    zero = np.full_like(scale, (top + 1) // 2) if is_symmetric else -low / scale
    zero = zero if has_biases else np.round(zero)
    codes = np.clip(np.round(groups / scale[..., None]) + zero[..., None], 0, top)
    return _judged(codes.reshape(weights.shape), np.repeat(zero, size, 1), np.arange(weights.shape[1]) // size, bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_weights_of_any_group_size_are_judged_rightly(shape: str, size: int, bits: int) -> None:
    draw = np.random.default_rng(size + bits)
    weights = drawn(shape, draw, 64, 512) * np.exp(draw.standard_normal((64, 1)) / 2)
    assert judged(weights, size, bits, is_symmetric=False) is None
    assert judged(weights, size, bits, is_symmetric=True) in (SYMMETRIC, None)


def test_rows_with_means_of_their_own_are_judged_rightly() -> None:
    """As in layers whose inputs have means: the zero points of such rows follow their means."""
    draw = np.random.default_rng(0)
    weights = draw.standard_normal((64, 512)) + draw.standard_normal((64, 1))
    assert judged(weights, 64, 4, is_symmetric=False) is None
    assert judged(weights, 64, 4, is_symmetric=True) == SYMMETRIC


def structured(shape: str, size: int) -> Any:
    """Weights whose groups have means of their own: of all rows, by row, or filters that are smooth along a row."""
    draw = np.random.default_rng(size)
    weights = draw.standard_normal((64, 1024))
    means = np.repeat(draw.standard_normal((1, 1024 // size)), size, 1)
    if shape == "smooth":
        parts = np.fft.rfft(weights, axis=1)
        return np.fft.irfft(parts / (1 + np.arange(parts.shape[1]) / 10), axis=1)
    signs = {"rank 1": draw.standard_normal((64, 1)), "patches": np.repeat(draw.standard_normal((64, 64)), 16, 1)}
    return weights + 2 * signs[shape] * (means if shape == "rank 1" else 1)


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("shape", ["rank 1", "smooth", "patches"])
def test_groups_with_means_of_their_own_are_not_said(shape: str, size: int, bits: int, has_biases: bool) -> None:
    """As in filters of images or sounds: the zero points follow the means, the mean codes do not."""
    assert judged(structured(shape, size), size, bits, has_biases=has_biases) is None


CLIPPED: dict[str, tuple[Encode, dict[str, Any]]] = {name: HEALTHY[name] for name in ("gptq", "awq", "mlx of 4 bits")}


@pytest.mark.costly
@pytest.mark.parametrize("name", CLIPPED)
@pytest.mark.parametrize("levels", [0, 2])
def test_weights_that_are_clipped_at_one_value_are_not_said(name: str, levels: int) -> None:
    """Symmetric codes of such weights have both ends in each group; some have few values, as those of BitNet."""
    encode, settings = CLIPPED[name]

    def clipped(weight: torch.Tensor) -> State:
        means = torch.randn(len(weight), weight.shape[1] // 64, generator=torch.Generator().manual_seed(1)) / 3
        unit = (weight / weight.std() + means.repeat_interleave(64, 1)).clamp(-1, 1)
        return encode(torch.round(unit * levels) / levels if levels else unit)

    path = write_model(Path("m"), coded_tensors(clipped, layers=4), settings)
    for text in TEXTS:
        assert false_alarms(path, text) == []


def test_weights_that_are_all_positive_have_not_lost_their_zero_points() -> None:
    """Their zero points are all 0, and all groups have the lowest and the highest code."""
    codes = np.clip(np.random.default_rng(0).gamma(2, 1.5, (64, 512)).round(), 0, 15)
    codes[:, ::64], codes[:, 1::64] = 0, 15
    group = np.arange(512) // 64
    assert _judged(codes, np.zeros_like(codes), group, 4) is None
    assert _judged(codes, np.full_like(codes, 8), group, 4) in (ASYMMETRIC, SYMMETRIC)


def test_most_tensors_have_to_be_asymmetric() -> None:
    """A tensor of which one part looks symmetric counts as symmetric."""
    some = [f"layers.{number}" for number in range(8)]
    assert lost_zero_points({ASYMMETRIC: some[:7], SYMMETRIC: some[7:]}) == {*some[:7]}
    assert not lost_zero_points({ASYMMETRIC: some[:6], SYMMETRIC: some[6:]})
    assert not lost_zero_points({ASYMMETRIC: some, SYMMETRIC: some[:2]})
    assert not lost_zero_points({ASYMMETRIC: some[:3]})
    assert not lost_zero_points({UNFIT: some})
