"""A part of a quantised tensor is not given another name than the rest, whatever the new name looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs

from ...helpers.quantised import Quantised
from ...helpers.zoo import BY_NAME, ZOO

NAMES = ("xx", "scale_of_weights", "y_scale", "weight_sc", "qq_zeros")


def endings(quantised: Quantised, folder: Path) -> list[str]:
    """The last segments of the keys of all parts but the codes; none if they do not end with a segment of their own."""
    with cs.open_checkpoint(folder) as one:
        coded = one.codes.tensors[0]
        return [key.rpartition(".")[2] for end, key in coded.parts.items() if key != coded.codes and "." in key]


@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_a_part_of_all_layers_is_not_renamed_apart(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    if len(quantised.layers) < 2:
        return
    for part, end in enumerate(endings(quantised, folder)):
        first = ZOO.index(quantised) + part  # two names for each part: each name is tried with parts of many encodings
        for name in (NAMES[first % len(NAMES)], NAMES[(first + 1) % len(NAMES)]):
            with pytest.raises(cs.CheckpointError) as caught:
                cs.rename(folder, map=[f"**.{end}=**.{name}"])
            assert caught.value.exit_code == 4, (end, name, caught.value.message)


@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_a_module_is_renamed_with_all_its_parts(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    rules = [f"{layer}={layer}_again" for layer in quantised.layers]
    with cs.open_checkpoint(folder) as one:
        keys = set(one.codes.by_key)
        is_module = all(key.startswith(f"{layer}.") for layer in quantised.layers for key in keys if layer in key)
    if is_module:
        plan = cs.rename(folder, map=rules)
        assert len([step for step in plan.steps if "_again" in step.key]) >= len(keys)


def test_a_scale_is_not_found_by_its_shape(tmp_path: Path) -> None:
    folder = BY_NAME["int8-tensorrt"].folder(tmp_path / "a")
    with pytest.raises(cs.PlanError, match=r"no longer have matching names: .*weights_scaling_factor to .*\.xx"):
        cs.rename(folder, map=["**.weights_scaling_factor=**.xx"])
