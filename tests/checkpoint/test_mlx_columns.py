"""Settings of one module of MLX that contradict its codes show in the columns of the other layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

from ..helpers.coded_matrices import SETTINGS, mlx, save_model

WIDE, HIDDEN, LAYERS = 128, 256, 4
EIGHT = {"bits": 8, "group_size": 32}
SAID = "but in other layers the same tensor has"


def save(overrides: dict[str, Any], stored: dict[str, tuple[int, int]], sizes: dict[int, int] | None = None) -> Path:
    """A network of MLX, 4 bits in groups of 64; ``stored`` has other (bits, group size), ``sizes`` other widths."""
    draw, weights = torch.Generator().manual_seed(0), {}
    for layer in range(LAYERS):
        wide = (sizes or {}).get(layer, HIDDEN)
        for name, shape in {"up_proj": (wide, WIDE), "down_proj": (WIDE, wide)}.items():
            module = f"model.layers.{layer}.mlp.{name}"
            bits, group = stored.get(module, (4, 64))
            weights[module] = mlx(torch.randn(shape, generator=draw) * 0.05, bits=bits, group=group)
    return save_model(Path("model"), {**SETTINGS["mlx"], "group_size": 64, "bits": 4, **overrides}, weights)


@pytest.mark.costly
@pytest.mark.parametrize("role", ["up_proj", "down_proj"])
def test_settings_of_one_module_that_contradict_its_codes(role: str) -> None:
    name = f"model.layers.1.mlp.{role}"
    folder, usual = save({name: EIGHT}, {}), WIDE if role == "up_proj" else HIDDEN
    said = f"1 quantised tensor would have {usual // 2} columns, {SAID} {usual}; perhaps these tensors have other bits and another group_size than it says: "
    for verb in (cs.inspect, cs.convert):
        assert [one for one in verb(folder).notes if SAID in one] == [
            f"{folder}: with its quantization_config, {said}{name}.weight"
        ]
    (found,) = [one for row in cs.check(folder).rows for one in row.found if SAID in one.what]
    assert found.status == Status.WARN


def test_codes_of_one_module_that_contradict_the_settings_of_all() -> None:
    folder = save({}, {"model.layers.2.mlp.up_proj": (8, 32)})
    (note,) = [one for one in cs.inspect(folder).notes if SAID in one]
    assert f"would have {2 * WIDE} columns, {SAID} {WIDE}" in note


@pytest.mark.costly
@pytest.mark.parametrize(
    ("overrides", "stored", "sizes"),
    [
        ({}, {}, None),
        ({"model.layers.1.mlp.up_proj": EIGHT}, {"model.layers.1.mlp.up_proj": (8, 32)}, None),
        ({"model.layers.1.mlp.up_proj": {"bits": 6, "group_size": 64}}, {"model.layers.1.mlp.up_proj": (6, 64)}, None),
        ({}, {}, {1: HIDDEN // 2}),  # a network whose layers differ
        ({}, {}, {1: 2 * HIDDEN, 2: HIDDEN // 2}),
    ],
)
def test_settings_that_fit_have_no_note(overrides: Any, stored: Any, sizes: Any) -> None:
    folder = save(overrides, stored, sizes)
    assert len(cs.inspect(folder).codes.tensors) == 2 * LAYERS
    assert not [one for one in cs.inspect(folder).notes if SAID in one]
