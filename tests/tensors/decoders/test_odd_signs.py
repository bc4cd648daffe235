"""Scales that lost their sign or became 0 are noted by whatever decodes them, and those that methods choose never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.odd_scales.kinds import NEGATED, NEGATIVE, NESTED, SAID, ZERO

from ...conftest import Result
from ...helpers import coded_matrices
from ...helpers.coded_matrices import SETTINGS, Encode, save_model
from ...helpers.four_bits import FOUR_BITS
from ...helpers.zoo import BY_NAME

Change = Callable[[torch.Tensor], torch.Tensor]
LAYERS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
SHAPE = (128, 256)


def normal(number: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(number)) / 16


def model(
    method: str, change: Change = torch.clone, end: str = ".scales", draw: Callable[[int], torch.Tensor] = normal
) -> Path:
    """A model of two layers, of which all parts with the ending ``end`` are changed."""
    encode: Encode = getattr(coded_matrices, method)
    coded = {name: encode(draw(number)) for number, name in enumerate(LAYERS)}
    changed = {
        name: {key: change(one) if key == end else one for key, one in parts.items()} for name, parts in coded.items()
    }
    return save_model(Path(method), SETTINGS[method], changed)


def negated(one: torch.Tensor) -> torch.Tensor:
    return -one.abs()


def quarter(one: torch.Tensor) -> torch.Tensor:
    """A quarter of the scales are 0."""
    changed = one.clone()
    changed.reshape(-1)[::4] = 0
    return changed


def notes(path: Path | str) -> list[str]:
    """What both statistics and decoding say of scales."""
    decoded = cs.apply(cs.convert(path, dequantize=True), "out.safetensors", force=True).notes
    found = [one for one in cs.inspect(path, stats=True).notes if any(said in one for said in SAID.values())]
    assert found == [one for one in decoded if any(said in one for said in SAID.values())]
    return found


def checked(path: Path | str) -> list[tuple[str, str]]:
    row = cs.check(path).row("scales")
    return [(one.status.value, one.what) for one in row.found]


@pytest.mark.costly
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_scales_that_are_all_negative_are_noted(method: str) -> None:
    assert notes(model(method)) == []
    path = model(method, negated)
    names = ", ".join(f"{name}.weight" for name in LAYERS)
    assert notes(path) == [f"{path}: 2 quantised tensors have {SAID[NEGATED]}: {names}"]
    ((status, what),) = checked(path)
    assert (status, what.startswith("2 tensors of scales with negative values")) == ("FAIL", True)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["int8", "int4-packed"])
def test_those_of_other_integers_too(name: str, tmp_path: Path) -> None:
    folder = BY_NAME[name].folder(tmp_path / "m")
    assert notes(folder) == []
    state = load_file(folder / "model.safetensors")
    changed = {key: negated(one) if key.endswith("weight_scale") else one for key, one in state.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    assert [one for one in notes(folder) if SAID[NEGATED] in one]


def shifted(number: int) -> torch.Tensor:
    return normal(number) + 0.02


def positive(number: int) -> torch.Tensor:
    return normal(number).abs() + 0.01


def ternary(number: int) -> torch.Tensor:
    return normal(number).mul(12).round().clamp(-1, 1) / 16


@pytest.mark.parametrize("draw", [normal, shifted, positive, ternary])
def test_the_signs_of_auto_round_are_usual(draw: Callable[[int], torch.Tensor]) -> None:
    """Those of positive and of ternary weights are all negative."""
    path = model("auto_round", draw=draw)
    assert notes(path) == []
    if draw in (normal, shifted):
        assert checked(path) == []


@pytest.mark.costly
@pytest.mark.parametrize(
    ("method", "end"), [("nf4", ".weight.absmax"), ("gptq", ".scales"), ("awq", ".scales"), ("mlx", ".scales"), ("llm_int8", ".SCB")]
)  # fmt: skip
@pytest.mark.parametrize("change", [quarter, torch.zeros_like])
def test_scales_of_zero_are_noted_if_they_hide_codes(method: str, end: str, change: Change) -> None:
    assert notes(model(method)) == []
    assert [one for one in notes(model(method, change, end)) if SAID[ZERO] in one]


def test_groups_of_zeros_of_mlx_are_usual() -> None:
    """Converters give them a scale of 0, and any code that all of the group have."""

    def with_zeros(number: int) -> torch.Tensor:
        weight = normal(number)
        weight[:, :64] = 0
        return weight

    coded = {}
    for number, name in enumerate(LAYERS):
        parts = coded_matrices.mlx(with_zeros(number))
        parts[".scales"][:, 0] = 0
        parts[".weight"].view(torch.int32)[:, :8] = 0x88888888 - (1 << 32)
        coded[name] = parts
    assert notes(save_model(Path("m"), SETTINGS["mlx"], coded)) == []


@pytest.mark.costly
@pytest.mark.parametrize("name", ["bnb-nf4-nested", "bnb-fp4-nested"])
def test_scales_of_scales_of_zero_are_noted(name: str, tmp_path: Path) -> None:
    folder = FOUR_BITS[name].folder(tmp_path / "m")
    assert notes(folder) == []
    state = load_file(folder / "model.safetensors")
    changed = {key: one * 0 if key.endswith("nested_absmax") else one for key, one in state.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    assert [one for one in notes(folder) if SAID[NESTED] in one]


@pytest.mark.costly
@pytest.mark.parametrize(("part", "is_noted"), [(1.0, False), (0.9, False), (0.0, True), (-1.0, True)])
def test_scales_that_are_negative_without_their_offset_are_noted(part: float, is_noted: bool) -> None:
    """bitsandbytes quantises the differences of the scales from their mean, which is the offset."""
    weights = {}
    for number, module in enumerate(LAYERS):
        weight = normal(number) * (1 + torch.rand(SHAPE[0], 1, generator=torch.Generator().manual_seed(number)))
        weight[:2] = 0  # their scales are 0, or a little less by rounding
        weights[module] = coded_matrices.nested_nf4(weight, part)
    path = save_model(Path("m"), SETTINGS["nf4"], weights)
    for found in (notes(path), [*cs.convert(path).notes], [what for _, what in checked(path)]):
        assert bool([one for one in found if SAID[NEGATIVE] in one]) == is_noted


def blocks(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
    """A GGUF file of two matrices, of which the scales of all blocks are changed."""
    size = {"q8_0": 34, "q4_0": 18, "q5_0": 22}[kind]
    save_file({f"blk.{number}.ffn_up.weight": normal(number) for number in (0, 1)}, "plain.safetensors")
    cs.apply(cs.convert("plain.safetensors", gguf_type=kind, layout="keep"), "m.gguf", force=True)
    with cs.open_checkpoint("m.gguf") as opened:
        places = [(one.storage.offset + one.offset, one.nbytes) for one in opened.values() if one.storage]
    raw = bytearray(Path("m.gguf").read_bytes())
    for begin, nbytes in places:
        some = np.frombuffer(raw, np.uint8, nbytes, begin).reshape(-1, size)
        some[:, :2] = change(some[:, :2].copy().view("<f2")).astype("<f2").view(np.uint8)
    Path("m.gguf").write_bytes(raw)
    return "m.gguf"


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q5_0"])
def test_scales_of_gguf_blocks_that_are_all_negative_or_zero_are_noted(kind: str) -> None:
    assert notes(blocks(kind, lambda one: one)) == []
    assert checked("m.gguf") == []
    assert [one for one in notes(blocks(kind, lambda one: -abs(one))) if SAID[NEGATED] in one]
    assert checked("m.gguf") == [("FAIL", f"2 tensors with {SAID[NEGATED]}: blk.0.ffn_up.weight, blk.1.ffn_up.weight")]
    assert [one for one in notes(blocks(kind, lambda one: one * 0)) if SAID[ZERO] in one]


def test_blocks_of_tiny_numbers_are_usual() -> None:
    """Their scales are too small for float16, and become 0."""
    weight = normal(0)
    weight[:64] *= 1e-6
    save_file({"blk.0.ffn_up.weight": weight, "blk.1.ffn_up.weight": weight * 0}, "plain.safetensors")
    cs.apply(cs.convert("plain.safetensors", gguf_type="q8_0", layout="keep"), "m.gguf")
    assert notes("m.gguf") == []


def test_statistics_end_with_the_line_that_names_them(ckpt: Callable[..., Result]) -> None:
    """The exit status is that of other scales of 0 or of the wrong sign: only NaN and infinities make it 1."""
    result = ckpt("inspect", model("gptq", negated), "--stats")
    assert result.code == 0
    assert result.err.startswith(f"warning: gptq: 2 quantised tensors have {SAID[NEGATED]}"[:60])
