"""A few scales that lost their sign are noted, and never those whose signs a quantiser chose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.decoders._signs import are_chosen
from ckptsurgeon.tensors.odd_scales.kinds import NEGATIVE, OPPOSED, SAID
from ckptsurgeon.tensors.odd_scales.stray_signs import CHOSEN, STRAY, stray_signs

from ...helpers import coded_matrices
from ...helpers.coded_matrices import SETTINGS, Encode, Parts, mlx, old_mlx, save_model
from .test_odd_signs import blocks, normal, positive, shifted, ternary

LAYERS = tuple(f"model.layers.{number}.mlp.up_proj" for number in range(3))
Draw = Callable[[int], torch.Tensor]
Change = Callable[[Parts], Parts]
NEGATED = torch.tensor([5, 70, 200])
"""The places of the scales whose sign is changed."""


def with_signs(scale: torch.Tensor, factor: float = -1) -> torch.Tensor:
    changed = scale.clone().reshape(-1)
    changed[NEGATED] = changed[NEGATED].abs() * factor
    return changed.reshape(scale.shape)


def few(parts: Parts) -> Parts:
    return {end: with_signs(one) if end in (".scales", ".weight_scale") else one for end, one in parts.items()}


def tiny(parts: Parts) -> Parts:
    """Scales that training moved past 0."""
    return {**parts, ".scales": with_signs(parts[".scales"], -0.01)}


def model(encode: Encode, settings: str, change: Change = dict, draw: Draw = normal) -> Path:
    """A model of three layers; the second is changed."""
    coded = {name: encode(draw(number)) for number, name in enumerate(LAYERS)}
    return save_model(Path("m"), SETTINGS[settings], {**coded, LAYERS[1]: change(coded[LAYERS[1]])})


def notes(path: Path | str) -> list[str]:
    """What both statistics and decoding say of signs."""
    found = [
        [one for one in told if STRAY in one or SAID[OPPOSED] in one or SAID[NEGATIVE] in one]
        for told in (
            cs.apply(cs.convert(path, dequantize=True), "out.safetensors", force=True).notes,
            cs.inspect(path, stats=True).notes,
        )
    ]
    assert found[0] == found[1]
    return found[0]


def checked(path: Path | str) -> list[str]:
    return [one.what for one in cs.check(path).row("scales").found]


@pytest.mark.costly
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_few_negative_scales_are_noted(method: str) -> None:
    encode = getattr(coded_matrices, method)
    assert notes(model(encode, method)) == []
    path = model(encode, method, few)
    assert notes(path) == [f"m: 1 quantised tensor has {STRAY}: {LAYERS[1]}.weight"]
    assert checked(path) == ["1 tensor of scales with negative values: model.layers.1.mlp.up_proj.scales"]
    assert [one for one in cs.apply(cs.average([path, "out.safetensors"]), "mean").notes if STRAY in one]


@pytest.mark.parametrize("scheme", ["int8", "int4-group128"])
def test_those_of_compressed_tensors_too(scheme: str) -> None:
    state = {f"{name}.weight": normal(number) for number, name in enumerate(LAYERS)}
    save_file(state, "plain.safetensors")
    cs.apply(cs.convert("plain.safetensors", quantize=scheme), "q.safetensors")
    opened = cs.open_checkpoint("q.safetensors")
    parts = {key: opened.tensor(key) for key in opened}
    key = f"{LAYERS[1]}.weight_scale"
    scale = parts[key].clone()
    scale.reshape(-1)[3] *= -1
    save_file({**parts, key: scale}, "q.safetensors", opened.metadata)
    assert notes("q.safetensors") == [f"q.safetensors: 1 quantised tensor has {STRAY}: {LAYERS[1]}.weight"]


def longer_below(number: int) -> torch.Tensor:
    """Values of both signs, of which the largest are negative: most scales of AutoRound are positive."""
    weight = normal(number)
    return torch.where(weight < 0, weight * weight.abs() * 16, weight / 2)


@pytest.mark.costly
@pytest.mark.parametrize("draw", [normal, shifted, positive, ternary, longer_below])
@pytest.mark.parametrize("sign", [1, -1])
def test_signs_that_auto_round_chooses_are_usual(draw: Draw, sign: int) -> None:
    path = model(coded_matrices.auto_round, "auto_round", draw=lambda number: sign * draw(number))
    assert [one for one in notes(path) if STRAY in one] == []


def test_scales_that_training_moved_past_zero_are_usual() -> None:
    assert notes(model(coded_matrices.gptq, "gptq", tiny)) == []


@pytest.mark.costly
@pytest.mark.parametrize("encode", [mlx, old_mlx])
def test_a_scale_of_mlx_with_the_sign_of_its_bias_is_noted(encode: Encode) -> None:
    def one(parts: Parts) -> Parts:
        scales = parts[".scales"].clone()
        scales.reshape(-1)[int((parts[".biases"].reshape(-1) < 0).nonzero()[0])] *= -1
        return {**parts, ".scales": scales}

    assert notes(model(encode, "mlx")) == []
    path = model(encode, "mlx", one)
    assert notes(path) == [f"m: 1 quantised tensor has {SAID[OPPOSED]}: {LAYERS[1]}.weight"]
    assert [said for said in checked(path) if SAID[OPPOSED] in said]


def test_a_positive_scale_of_mlx_with_a_positive_bias_is_noted() -> None:
    """Newer versions of MLX choose the sign of each scale."""

    def one(parts: Parts) -> Parts:
        scales = parts[".scales"].clone()
        scales.reshape(-1)[int((parts[".biases"].reshape(-1) > 0).nonzero()[0])] *= -1
        return {**parts, ".scales": scales}

    assert notes(model(mlx, "mlx", one)) == [f"m: 1 quantised tensor has {SAID[OPPOSED]}: {LAYERS[1]}.weight"]


def test_positive_groups_of_older_versions_of_mlx_are_usual() -> None:
    def some_positive(number: int) -> torch.Tensor:
        weight = normal(number)
        weight[:4] = weight[:4].abs() + 0.5
        return weight

    for encode in (mlx, old_mlx):
        assert notes(model(encode, "mlx", draw=some_positive)) == []


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_negative_block_of_gguf_is_noted_if_its_type_has_none(kind: str) -> None:
    def one(scale: np.ndarray) -> np.ndarray:
        scale[3] = -abs(scale[3])
        return scale

    assert notes(blocks(kind, lambda scale: scale)) == []
    names = "blk.0.ffn_up.weight, blk.1.ffn_up.weight"
    wanted = [f"m.gguf: 2 quantised tensors have {SAID[NEGATIVE]}: {names}"] if kind == "q8_0" else []
    assert notes(blocks(kind, one)) == wanted


@pytest.mark.parametrize("sign", [1, -1])
def test_a_negative_scale_of_ctranslate2_is_noted(sign: int) -> None:
    weight = normal(0)
    scale = 127 / weight.abs().amax(1)
    codes = (weight * scale[:, None]).round().to(torch.int8)
    scale[3] *= sign
    save_file({"ffn/linear_0/weight": codes, "ffn/linear_0/weight_scale": scale}, "c.safetensors")
    found = notes("c.safetensors")
    assert found == (
        [f"c.safetensors: 1 quantised tensor has {SAID[NEGATIVE]}: ffn/linear_0/weight"] if sign < 0 else []
    )


@pytest.mark.parametrize("first", [0x77777777, 0x88888888])
@pytest.mark.parametrize("second", [0x77777777, 0x88888888, 0xFFFFFFFF])
def test_zero_points_that_differ_are_those_of_positive_scales(first: int, second: int) -> None:
    """Words of int32 on both sides of 0: their difference may be too large for an int32."""
    zeros = np.array([[first], [second]], np.uint32).view(np.int32)
    codes = normal(0).numpy().round()
    codes[:, :8] = codes.min()  # far more frequent than the highest code
    found = are_chosen({"zero": zeros, "scale": np.ones((2, 1), np.float32)}, lambda _: codes)
    assert found == (first == second)


def test_a_negative_scale_beside_zero_points_of_all_sizes_is_noted() -> None:
    """Zero points of 7 and of 8: their packed words are the largest and the smallest of all."""

    def encode(weight: torch.Tensor) -> Parts:
        parts = coded_matrices.auto_round(weight)
        parts[".qzeros"][::2] = 0x77777777
        parts[".qzeros"][1::2] = 0x88888888 - 2**32
        return {**parts, ".scales": parts[".scales"].abs()}

    path = model(encode, "gptq", few, longer_below)
    assert notes(path) == [f"m: 1 quantised tensor has {STRAY}: {LAYERS[1]}.weight"]


def test_signs_may_be_chosen_if_the_lowest_code_is_that_of_the_largest_value_of_each_group() -> None:
    codes = np.random.default_rng(0).integers(-7, 8, (64, 32)).astype(np.float32)
    scale = {"scale": np.ones((64, 1), np.float32)}
    assert not are_chosen(scale, lambda _: codes)
    codes[:, 0] = -8
    assert not are_chosen(scale, lambda _: np.where(codes == 7, 8, codes))  # as many of the highest code
    codes[codes == 7] = 6
    codes[0, 1] = 7
    assert are_chosen(scale, lambda _: codes)


def test_parts_of_a_weight_are_judged_together() -> None:
    """A part with codes for which signs may be chosen speaks for the whole weight."""
    parts = [{"signs^1/16": ["a", "b", "c"]}, {"signs^1/16": ["a"]}, {"signs^2/16": ["b"]}, {CHOSEN: ["d"]}]
    assert stray_signs(parts) == {"a"}
    assert stray_signs([*parts, {CHOSEN: ["a"]}]) == set()
