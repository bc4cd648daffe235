"""An adapter that changes nothing is said to: its B or A matrices are all zero, as they are before training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors, peft_folder


def adapter(folder: str, zero: str, modules: tuple[str, ...] = ("0.q", "1.q")) -> str:
    tensors = {}
    for module in modules:
        a, b = factors(8, 8, 2, 1)
        tensors[f"layers.{module}.lora_A.weight"] = torch.zeros_like(a) if f"A{module[0]}" in zero else a
        tensors[f"layers.{module}.lora_B.weight"] = torch.zeros_like(b) if f"B{module[0]}" in zero else b
    peft_folder(folder, tensors)
    return folder


def notes(*folders: str, **options: str) -> list[str]:
    save_file(base_state(), "base.safetensors")
    told = cs.apply(cs.lora_merge("base.safetensors", list(folders)), "out", force=True, **options).notes
    return [one for one in told if "changes nothing" in one]


@pytest.mark.parametrize("zero", ["B0 B1", "A0 A1", "B0 A1"])
def test_an_adapter_of_zeros_is_said_to_change_nothing(zero: str) -> None:
    assert notes(adapter("a", zero)) == [
        "a/adapter_model.safetensors: all of its 2 changes are zero (its A or B matrices, or its scales, are zero), so that merging it changes nothing"
    ]


def test_an_adapter_with_some_zeros_is_not() -> None:
    assert notes(adapter("a", "B0")) == []


def test_of_several_the_one_is_named() -> None:
    (note,) = notes(adapter("a", ""), adapter("b", "B0", ("0.q",)))
    assert (
        note
        == "b/adapter_model.safetensors: its change is zero (its A or B matrices, or its scales, are zero), so that merging it changes nothing"
    )


def test_parts_of_the_output_are_taken_together() -> None:
    assert len(notes(adapter("a", "B0 B1"), max_shard_size="300B")) == 1
    assert notes(adapter("b", "B0"), max_shard_size="300B") == []
