"""Kohya's files without alpha whose metadata give another scale than 1: inspect, check and a merge note it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors

SAID = (
    "1 module has no alpha tensor, so the scale is 1, although the metadata give 2 (ss_network_alpha 4 / ss_network_dim 2): "
    "to apply this alpha, run ckpt lora merge with --weights 2"
)


def written(metadata: dict[str, str], **more: torch.Tensor) -> None:
    save_file(base_state(), "base.safetensors")
    a, b = factors(8, 8)
    tensors = {"lora_unet_layers_0_q.lora_down.weight": a, "lora_unet_layers_0_q.lora_up.weight": b}
    save_file(
        {**tensors, **{f"lora_unet_layers_0_q.{name}": one for name, one in more.items()}}, "a.safetensors", metadata
    )


def noted() -> list[str]:
    found = [one.what for row in cs.check("a.safetensors").rows for one in row.found]
    notes = (*cs.inspect("a.safetensors").notes, *cs.lora_merge("base.safetensors", "a.safetensors").notes, *found)
    return [note.removeprefix("a.safetensors: ") for note in notes if "ss_network" in note]


def test_a_scale_that_is_only_in_the_metadata_is_said_and_the_scale_stays_1() -> None:
    written({"ss_network_alpha": "4", "ss_network_dim": "2"})
    assert noted() == [SAID] * 3
    cs.apply(cs.lora_merge("base.safetensors", "a.safetensors"), "y.safetensors")
    a, b = factors(8, 8)
    assert torch.allclose(load_file("y.safetensors")["layers.0.q.weight"], base_state()["layers.0.q.weight"] + b @ a)


def test_no_weight_is_advised_if_other_modules_have_an_alpha() -> None:
    written({"ss_network_alpha": "4", "ss_network_dim": "2"})
    a, b = factors(8, 8, seed=1)
    more = {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(4.0)}
    both = {**load_file("a.safetensors"), **{f"lora_unet_layers_0_up.{name}": one for name, one in more.items()}}
    save_file(both, "a.safetensors", {"ss_network_alpha": "4", "ss_network_dim": "2"})
    (note,) = {note for note in cs.inspect("a.safetensors").notes if "ss_network" in note}
    assert note == f"{SAID.partition(': to apply')[0]}; 1 other module has an alpha tensor"


@pytest.mark.parametrize(
    ("metadata", "more"),
    [
        ({}, {}),
        ({"ss_network_alpha": "2.0", "ss_network_dim": "2"}, {}),
        ({"ss_network_alpha": "None", "ss_network_dim": "2"}, {}),
        ({"ss_network_alpha": "nan", "ss_network_dim": "2"}, {}),
        ({"ss_network_alpha": "4"}, {}),
        ({"ss_network_alpha": "4", "ss_network_dim": "2"}, {"alpha": torch.tensor(4.0)}),
    ],
)
def test_other_files_get_no_note(metadata: dict[str, str], more: dict[str, Any]) -> None:
    written(metadata, **more)
    assert not noted()
