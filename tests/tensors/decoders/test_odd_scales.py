"""Scales that no method of quantisation writes are noted by whatever decodes them, and usual ones never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.odd_scales.kinds import HUGE, NO_OFFSET, SAID, UNSET
from ckptsurgeon.tensors.odd_scales.stray_signs import STRAY

from ...helpers.quantised import LAYERS, Quantised
from ...helpers.zoo import BY_NAME
from .test_recorded import decoded

ZERO = "scales of 0 for codes that are not zero, so that these weights become 0"
NEGATIVE = "negative scales, which the encoding does not have, so that these weights change their sign"
FIRST = f"{LAYERS[0]}.weight"
Tensors = dict[str, torch.Tensor]


def changed(model: Quantised, end: str, change: Callable[[torch.Tensor], torch.Tensor], folder: Path) -> Path:
    """A model of the zoo, in which one part of the first quantised tensor is changed."""
    path = usual(model).folder(folder)
    tensors = cs.open_checkpoint(path)
    state = {key: tensors.tensor(key) for key in tensors}
    key = f"{LAYERS[0]}{end}"
    save_file({**state, key: change(state[key])}, path / "model.safetensors")
    return path


def usual(model: Quantised) -> Quantised:
    """The model without negative scales, which the random bytes of nvfp4 have."""

    def store(generator: torch.Generator) -> Tensors:
        made = model.store(generator)
        return {end: one.float().abs().to(one.dtype) if "scale" in end else one for end, one in made.items()}

    return replace(model, store=store)


def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(scale: torch.Tensor) -> torch.Tensor:
        found = scale.float().clone()
        found.reshape(-1)[0] = value
        return found.to(scale.dtype)

    return change


def notes(folder: Path) -> list[str]:
    told = cs.apply(cs.convert(folder, dequantize=True), folder / "out.safetensors").notes
    return [one for one in told if "scales" in one]


ENDS = {
    "fp8-block": ".weight_scale_inv", "fp8-channel": ".weight_scale", "nvfp4-modelopt": ".weight_scale",
    "nvfp4-packed": ".weight_scale", "int8": ".weight_scale", "int4-packed": ".weight_scale", "gptq": ".scales",
    "gptq-3bit": ".scales", "awq": ".scales", "bnb-int8": ".SCB",
}  # fmt: skip


@pytest.mark.parametrize(("name", "end"), ENDS.items())
def test_a_scale_of_zero_for_other_codes_is_noted(name: str, end: str, tmp_path: Path) -> None:
    folder = changed(BY_NAME[name], end, with_first(0), tmp_path / "m")
    assert notes(folder) == [f"{folder}: 1 quantised tensor has {ZERO}: {FIRST}"]


@pytest.mark.parametrize("name", [*ENDS, "mlx", "fp8-tensor", "fp8-comfy"])
def test_usual_scales_are_not(name: str, tmp_path: Path) -> None:
    assert notes(usual(BY_NAME[name]).folder(tmp_path / "m")) == []


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "said"),
    [*((one, NEGATIVE) for one in ("fp8-block", "nvfp4-packed", "bnb-int8")), *((one, STRAY) for one in ("gptq", "awq", "int8", "int4-packed"))],
)  # fmt: skip
def test_a_negative_scale_is_noted(name: str, said: str, tmp_path: Path) -> None:
    """Some encodings have none; of the others, it is one among many positive ones."""
    folder = changed(BY_NAME[name], ENDS[name], with_first(-0.5), tmp_path / "m")
    assert notes(folder) == [f"{folder}: 1 quantised tensor has {said}: {FIRST}"]


def test_a_scale_of_zero_for_codes_of_zero_is_usual(tmp_path: Path) -> None:
    model, layer = BY_NAME["fp8-channel"], LAYERS[0]
    folder = changed(model, ".weight_scale", with_first(0), tmp_path / "m")
    tensors = cs.open_checkpoint(folder)
    state = {key: tensors.tensor(key) for key in tensors}
    codes = state[f"{layer}.weight"].float()
    codes[0] = 0
    save_file({**state, f"{layer}.weight": codes.to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    assert notes(folder) == []


def test_the_second_scale_of_nvfp4_counts(tmp_path: Path) -> None:
    folder = changed(BY_NAME["nvfp4-modelopt"], ".weight_scale_2", with_first(0), tmp_path / "a")
    assert notes(folder) == [f"{folder}: 1 quantised tensor has {ZERO}: {FIRST}"]
    folder = changed(BY_NAME["nvfp4-packed"], ".weight_global_scale", with_first(0), tmp_path / "b")
    with pytest.raises(cs.FormatError, match=rf"the codes of {FIRST} are divided by a scale that is 0"):
        notes(folder)


@pytest.mark.long
def test_merges_diffs_and_statistics_note_it_too(tmp_path: Path) -> None:
    odd = changed(BY_NAME["fp8-block"], ".weight_scale_inv", with_first(-1), tmp_path / "odd")
    sound = BY_NAME["fp8-block"].folder(tmp_path / "sound", 1)
    said = f"{odd}: 1 quantised tensor has {NEGATIVE}: {FIRST}"
    for name, plan in (
        ("average", cs.average([sound, odd])),
        ("merge", cs.merge([sound, odd], method="linear", weights=[0.5, 0.5])),
    ):
        assert said in cs.apply(plan, tmp_path / f"{name}.safetensors").notes
    assert said in cs.diff(sound, odd, values=True).notes
    assert said in cs.inspect(odd, stats=True).notes
    assert said in cs.inspect(odd).notes  # which looks at a sample
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.zeros(64, 128))
    told = cs.load_into(module, odd, map=[f"{FIRST}=weight"], encoding="dequantize", include=[FIRST])
    assert said in told.notes


def test_shards_say_it_once(tmp_path: Path) -> None:
    folder = changed(BY_NAME["gptq"], ".scales", with_first(0), tmp_path / "m")
    told = cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out", max_shard_size="20KB").notes
    assert [one for one in told if "scales" in one] == [f"{folder}: 1 quantised tensor has {ZERO}: {FIRST}"]


def test_a_scale_of_zero_leaves_other_weights_as_they_are() -> None:
    """Whether its codes are zero is found out by decoding them, in arrays of their own."""
    codes = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.full((2, 2), 0.01)
    scale[0, 0] = 0
    save_file({"a.weight": codes, "a.weight_scale_inv": scale}, "fp8.safetensors")
    receipt = cs.apply(cs.convert("fp8.safetensors", dequantize=True, dtype="float32"), "out.safetensors")
    wanted = codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert load_file("out.safetensors")["a.weight"].equal(wanted)
    assert any(ZERO in note for note in receipt.notes)


INVERSE = {
    "fp8-block": (".weight_scale_inv", lambda one: 1 / (one + 1e-3)),
    "fp8-channel": (".weight_scale", lambda one: 1e3 * torch.ones_like(one)),
    "nvfp4-packed": (".weight_global_scale", lambda one: 1 / (one * one)),
    "gptq": (".scales", lambda one: one * 0 + 30000),
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("name", INVERSE)
def test_scales_that_make_no_weights_are_noted(name: str, tmp_path: Path) -> None:
    end, change = INVERSE[name]
    folder = changed(BY_NAME[name], end, change, tmp_path / "m")
    assert notes(folder) == [f"{folder}: 1 quantised tensor has {SAID[HUGE]}: {FIRST}"]


def test_exponents_of_another_layer_are_noted(tmp_path: Path) -> None:
    """Those of mxfp4 are bytes, of which 127 is a scale of 1."""
    folder = changed(BY_NAME["mxfp4-quark"], ".weight_scale", lambda one: one * 0 + 160, tmp_path / "huge")
    assert [one for one in notes(folder) if SAID[HUGE] in one]
    folder = changed(BY_NAME["mxfp4-quark"], ".weight_scale", lambda one: one * 0, tmp_path / "zero")
    assert [one for one in notes(folder) if ZERO in one]


@pytest.mark.costly
@pytest.mark.parametrize(("name", "end"), [("gptq", ".qzeros"), ("awq", ".qzeros"), ("mlx", ".biases")])
def test_offsets_that_are_all_zero_are_noted(name: str, end: str, tmp_path: Path) -> None:
    folder = changed(BY_NAME[name], end, torch.zeros_like, tmp_path / "m")
    said = cs.apply(cs.convert(folder, dequantize=True), folder / "out.safetensors").notes
    assert f"{folder}: 1 quantised tensor has {SAID[NO_OFFSET]}: {FIRST}" in said


@pytest.mark.parametrize("name", ["bitsandbytes-nf4", "bitsandbytes-fp4"])
def test_scales_of_bitsandbytes_that_are_all_one_are_noted(name: str, tmp_path: Path) -> None:
    _, _, stored = decoded(Path(__file__).parent / f"recorded/{name}.safetensors", tmp_path)
    (key,) = (key for key in stored if key.endswith(".absmax"))
    for scale, is_noted in ((torch.ones_like(stored[key]), True), (with_first(1)(stored[key]), False)):
        save_file({**stored, key: scale}, tmp_path / "model.safetensors")
        assert any(SAID[UNSET] in note for note in notes(tmp_path)) is is_noted
        (tmp_path / "out.safetensors").unlink()


@pytest.mark.costly
@pytest.mark.parametrize("name", ["bitsandbytes-nf4", "bitsandbytes-fp4"])
def test_scales_of_bitsandbytes_that_are_zero_are_noted(name: str, tmp_path: Path) -> None:
    _, _, stored = decoded(Path(__file__).parent / f"recorded/{name}.safetensors", tmp_path)
    (key,) = (key for key in stored if key.endswith(".absmax"))
    for scale, is_noted in ((stored[key], False), (with_first(0)(stored[key]), True), (stored[key] * 0, True)):
        save_file({**stored, key: scale}, tmp_path / "model.safetensors")
        assert any(ZERO in note for note in notes(tmp_path)) == is_noted
        (tmp_path / "out.safetensors").unlink()


@pytest.mark.parametrize("name", ["bitsandbytes-nf4", "bitsandbytes-fp4"])
@pytest.mark.parametrize("code", [0x00, 0x77, 0xFF])
def test_a_block_of_zeros_of_bitsandbytes_is_usual(name: str, code: int, tmp_path: Path) -> None:
    """Its scale is 0, and its codes depend on what the comparisons of 0/0 return: they are all the same."""
    _, _, stored = decoded(Path(__file__).parent / f"recorded/{name}.safetensors", tmp_path)
    (key,) = (key for key in stored if key.endswith(".absmax"))
    codes = stored[key.removesuffix(".absmax")].clone()
    codes.view(torch.uint8).reshape(-1)[:32] = code
    save_file(
        {**stored, key: with_first(0)(stored[key]), key.removesuffix(".absmax"): codes}, tmp_path / "model.safetensors"
    )
    assert not any(ZERO in note for note in notes(tmp_path))


@pytest.mark.parametrize("name", ["fp8-block", "fp8-channel", "int8", "bnb-int8", "awq", "gptq"])
def test_weights_of_zeros_have_no_note(name: str, tmp_path: Path) -> None:
    """Codes, scales and zero points are all 0, as in layers that begin as the identity."""
    folder = usual(BY_NAME[name]).folder(tmp_path / "m")
    tensors = cs.open_checkpoint(folder)
    state = {key: tensors.tensor(key) for key in tensors}
    for key, one in state.items():
        if key.startswith(LAYERS[0]) and "g_idx" not in key:
            state[key] = torch.zeros_like(one)
    save_file(state, folder / "model.safetensors")
    said = cs.apply(cs.convert(folder, dequantize=True), folder / "out.safetensors").notes
    kinds = [kind for kind, words in SAID.items() if any(words in note for note in said)]
    assert kinds == (["zero"] if name == "gptq" else [])  # codes of 0 are not zero with zero points of 1
