"""Adapters whose B or A matrices are zero, all as before training, or some, are said to change nothing there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors, peft_folder


def adapter(
    folder: str, zero: str, modules: tuple[str, ...] = ("0.q", "1.q"), magnitudes: dict[str, torch.Tensor] | None = None
) -> str:
    """``magnitudes`` are those of DoRA."""
    tensors = {}
    for module in modules:
        a, b = factors(8, 8, 2, 1)
        tensors[f"layers.{module}.lora_A.weight"] = torch.zeros_like(a) if f"A{module[0]}" in zero else a
        tensors[f"layers.{module}.lora_B.weight"] = torch.zeros_like(b) if f"B{module[0]}" in zero else b
        if magnitudes is not None:
            tensors[f"layers.{module}.lora_magnitude_vector"] = magnitudes[module]
    peft_folder(folder, tensors, **({} if magnitudes is None else {"use_dora": True}))
    return folder


def notes(*folders: str, **options: str) -> list[str]:
    save_file(base_state(), "base.safetensors")
    told = cs.apply(cs.lora_merge("base.safetensors", list(folders)), "out", force=True, **options).notes
    return [one for one in told if "zero" in one or "magnitudes" in one]


@pytest.mark.parametrize("zero", ["B0 B1", "A0 A1", "B0 A1"])
def test_an_adapter_of_zeros_is_said_to_change_nothing(zero: str) -> None:
    assert notes(adapter("a", zero)) == [
        "a/adapter_model.safetensors: all of its 2 changes are zero (a factor such as A or B, or the scale, is zero), so merging this adapter changes nothing"
    ]


@pytest.mark.parametrize("zero", ["B0", "A0"])
def test_some_modules_without_a_change_are_named(zero: str) -> None:
    assert notes(adapter("a", zero)) == [
        "a/adapter_model.safetensors: 1 of its 2 changes is zero, because a factor such as A or B, or the scale, is zero (perhaps it was never trained): layers.0.q.weight"
    ]


def test_a_trained_adapter_has_no_note() -> None:
    assert notes(adapter("a", "")) == []


def norms() -> dict[str, torch.Tensor]:
    """The magnitudes of an untrained DoRA: the norms of the rows."""
    return {module: base_state()[f"layers.{module}.weight"].norm(dim=1) for module in ("0.q", "1.q")}


def test_dora_has_the_same_notes() -> None:
    assert notes(adapter("a", "", magnitudes=norms())) == []
    (some,) = notes(adapter("b", "B1", magnitudes=norms()))
    assert "1 of its 2 changes is zero" in some
    assert some.endswith(": layers.1.q.weight")
    assert notes(adapter("c", "B0 B1", magnitudes=norms())) == [
        "c/adapter_model.safetensors: all of its 2 products B A are zero, so only DoRA's magnitudes may change the base"
    ]


@pytest.mark.parametrize("rows", [1, 8])
def test_magnitudes_of_zero_are_said(rows: int) -> None:
    """They make rows of zeros."""
    magnitudes = norms()
    magnitudes["1.q"][:rows] = 0
    assert notes(adapter("a", "", magnitudes=magnitudes)) == [
        "a/adapter_model.safetensors: 1 tensor has magnitudes of DoRA that are 0, so whole rows become 0: layers.1.q.weight"
    ]


def test_of_several_the_one_is_named() -> None:
    (note,) = notes(adapter("a", ""), adapter("b", "B0", ("0.q",)))
    assert (
        note
        == "b/adapter_model.safetensors: its change is zero (a factor such as A or B, or the scale, is zero), so merging this adapter changes nothing"
    )


def test_parts_of_the_output_are_taken_together() -> None:
    assert len(notes(adapter("a", "B0 B1"), max_shard_size="300B")) == 1
    (some,) = notes(adapter("b", "B0"), max_shard_size="300B")
    assert some.startswith("b/adapter_model.safetensors: 1 of its 2 changes is zero")
