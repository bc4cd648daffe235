"""Matrices of 8-bit floats without scales: codes are far larger than weights that were cast to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status
from ckptsurgeon.checkpoint.values.lost_scales import EIGHT_BITS, _magnitudes

SAID = "perhaps their scales were lost"
TYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
LAYERS = 6


def weights(size: float = 0.02) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"layers.{i}.up.weight": size * torch.randn(256, 256, generator=draw) for i in range(LAYERS)}


def codes(dtype: torch.dtype, number: int = LAYERS) -> dict[str, torch.Tensor]:
    """The first weights divided by a scale for the whole tensor, and the others as they are."""
    largest = torch.finfo(dtype).max
    return {
        key: (one / one.abs().max() * largest if at < number else one).to(dtype)
        for at, (key, one) in enumerate(weights().items())
    }


def save(state: dict[str, torch.Tensor], path: str = "x.safetensors") -> str:
    save_file(state, path)
    return path


def found(notes: Any) -> list[str]:
    return [one for one in notes if SAID in one]


@pytest.mark.parametrize("dtype", TYPES)
def test_codes_without_scales_are_noted(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    (said,) = found(cs.inspect(save(codes(dtype))).notes)
    assert said.startswith("the values of 6 of 6 matrices of 8-bit floats that were looked at are as large as codes")
    assert f"but {name} without scales are plain numbers: {SAID}: layers.0.up.weight, " in said
    (said,) = found(cs.inspect(save(codes(dtype, 2), "some.safetensors")).notes)
    assert said.endswith(f"{SAID}: layers.0.up.weight, layers.1.up.weight")


@pytest.mark.parametrize("dtype", TYPES)
def test_plain_weights_of_8_bits_have_no_note(dtype: torch.dtype) -> None:
    for size in (0.001, 0.02, 1):
        assert not found(cs.inspect(save({key: one.to(dtype) for key, one in weights(size).items()})).notes)
    assert not found(cs.inspect(save(codes(dtype, 1))).notes)  # one matrix may be anything
    narrow = {f"{i}": torch.full((256, 32), 100.0).to(dtype) for i in range(LAYERS)}
    assert not found(cs.inspect(save(narrow)).notes)


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-channel"])
def test_codes_with_scales_have_no_note(scheme: str) -> None:
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    save_file(weights(), "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "coded")
    assert cs.inspect("coded").codes.tensors
    assert not found(cs.inspect("coded").notes)
    state = {key: one for key, one in load_file("coded/model.safetensors").items() if "scale" not in key}
    assert found(cs.inspect(save(state, "lost.safetensors")).notes)


VERBS: dict[str, Callable[[str], Any]] = {
    "convert": lambda path: cs.convert(path, dtype="bf16").notes,
    "average": lambda path: cs.average([path, path]).notes,
    "transplant": lambda path: cs.transplant(path, save(weights(), "whole.safetensors")).notes,
    "lora extract": lambda path: cs.lora_extract(path, save(weights(), "whole.safetensors"), rank=2).notes,
    "fits": lambda path: cs.fits(path, save(weights(), "whole.safetensors")).notes,
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_the_note(verb: str) -> None:
    assert len(found(VERBS[verb](save(codes(torch.float8_e4m3fn))))) >= 1
    assert not found(VERBS[verb](save({key: one.to(torch.float8_e4m3fn) for key, one in weights().items()})))


def test_check_warns_of_it_in_place_of_the_size() -> None:
    (row,) = [row for row in cs.check(save(codes(torch.float8_e4m3fn))).rows if row.id == "weight-size"]
    assert [(one.status, SAID in one.what) for one in row.found] == [(Status.WARN, True)]


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_the_magnitudes_are_those_of_torch(name: str) -> None:
    ours = torch.tensor(_magnitudes(name))
    theirs = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name)).float().abs()
    finite = theirs.isfinite()
    assert torch.equal(ours[finite], theirs[finite])
    assert (ours[~finite] > theirs[finite].max() * 0.99).all()


WIDE = {key: one.bfloat16() for key, one in weights().items()}
ODD = "layers.3.up.weight"
UNLIKE = "8-bit floats without scales, although the same matrix of most other layers"


def test_one_matrix_of_codes_among_wider_floats_is_noted() -> None:
    path = save({**WIDE, ODD: codes(torch.float8_e4m3fn)[ODD]})
    (said,) = found(cs.inspect(path).notes)
    assert said.endswith(f"{SAID}: {ODD}")
    (row,) = [row for row in cs.check(path).rows if row.id == "weight-size"]
    assert [SAID in one.what for one in row.found] == [True]


def test_one_matrix_of_cast_weights_among_wider_floats_is_noted() -> None:
    path = save({**WIDE, ODD: WIDE[ODD].to(torch.float8_e4m3fn)})
    (said,) = [note for note in cs.inspect(path).notes if UNLIKE in note]
    assert said == f"1 matrix has {UNLIKE} is bfloat16: {ODD}"
    assert [UNLIKE in one.what for row in cs.check(path).rows if row.id == "weight-size" for one in row.found] == [True]


@pytest.mark.parametrize("scheme", ["fp8-block", "fp8-channel"])
def test_one_matrix_that_lost_its_scales_is_noted_without_settings(scheme: str) -> None:
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    save_file(WIDE, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "coded")
    state = load_file("coded/model.safetensors")
    left = {key: one for key, one in state.items() if not (key.startswith("layers.3.") and "scale" in key)}
    (said,) = found(cs.inspect(save(left)).notes)
    assert said.endswith(f"{SAID}: {ODD}")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_model_in_which_half_of_the_layers_have_8_bits_has_no_note(number: int) -> None:
    cast = {key: one.to(torch.float8_e4m3fn) for key, one in list(WIDE.items())[:number]}
    notes = [note for note in cs.inspect(save({**WIDE, **cast})).notes if UNLIKE in note]
    assert bool(notes) is (number == 2)


def test_norms_and_other_roles_may_be_wider() -> None:
    cast = {key: one.to(torch.float8_e4m3fn) for key, one in WIDE.items()}
    notes = cs.inspect(save({**cast, "layers.0.norm.weight": torch.ones(256), "head.weight": WIDE[ODD]})).notes
    assert not [note for note in notes if UNLIKE in note or SAID in note]
