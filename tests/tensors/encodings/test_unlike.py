"""Weights of a quantised model that are stored unlike those of the other layers: said by every command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.zoo import BY_NAME
from .test_agreement import VERBS
from .test_missing_parts import IN, OUT, THREE, folder_of

PLAIN = torch.randn(OUT, IN).bfloat16()
WORDS = ("is not quantised", "are not quantised", "stored twice", "does not fit the codes", "lacks mlp")


def said(found: Any) -> list[str]:
    return [note.partition(": ")[2] for note in found.notes if any(word in note for word in WORDS)]


def changed(folder: Path, layer: int, *, keep: bool = False) -> None:
    """Let the weight of a layer be there plainly, and its codes go along or not."""
    state = load_file(folder / "model.safetensors")
    stem = THREE[layer]
    left = {key: value for key, value in state.items() if keep or not key.startswith((f"{stem}.", f"{stem}_"))}
    save_file({**left, f"{stem}.weight": PLAIN}, folder / "model.safetensors")


@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["gptq", "awq", "fp8-block", "bnb-nf4", "int4-packed"])
def test_a_plain_weight_among_codes_is_said_unless_settings_leave_it_out(name: str, verb: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    what = "1 weight is not quantised, although other layers are, and its quantization_config does not exclude it"
    assert f"{what}: {THREE[1]}.weight" in said(VERBS[verb](folder))
    config = json.loads((folder / "config.json").read_text())
    field = "ignore" if name == "int4-packed" else "modules_to_not_convert"
    config["quantization_config"][field] = [THREE[1]]
    (folder / "config.json").write_text(json.dumps(config))
    assert not said(VERBS[verb](folder))


@pytest.mark.parametrize("name", ["gptq", "awq", "int4-packed"])
def test_a_weight_that_is_there_twice_is_said_and_no_layer_lacks_it(name: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    for layer in (1, 2):
        changed(folder, layer, keep=True)
    (note,) = said(cs.inspect(folder))
    assert note.startswith("2 weights are stored twice, quantised and not quantised, and a loader uses only one: ")


@pytest.mark.parametrize(
    ("name", "end", "shape", "part"),
    [("awq", ".qzeros", (3, 8), f"qzeros of a shape that does not fit the codes: {THREE[0]}.weight"),
     ("gptq", ".qzeros", (7, 8), f"qzeros of a shape that does not fit the codes: {THREE[0]}.weight"),
     ("mxfp4", "_scales", (OUT, 7), f"parts of a shape that does not fit the codes: {THREE[0]}_blocks")],
)  # fmt: skip
def test_parts_of_another_shape_are_said(
    name: str, end: str, shape: tuple[int, ...], part: str, tmp_path: Path
) -> None:
    key = f"{THREE[0]}{end}"
    folder = folder_of(name, tmp_path, lambda state: state.update({key: torch.ones(shape, dtype=state[key].dtype)}))
    assert said(cs.inspect(folder)) == [f"1 quantised tensor has {part}"]


def test_codes_of_another_method_beside_those_of_the_settings_are_said(tmp_path: Path) -> None:
    other = load_file(replace(BY_NAME["gptq"], layers=THREE[:1]).folder(tmp_path / "g") / "model.safetensors")
    folder = folder_of("awq", tmp_path)
    state = load_file(folder / "model.safetensors")
    left = {key: value for key, value in state.items() if not key.startswith(f"{THREE[0]}.")}
    save_file({**left, **other}, folder / "model.safetensors")
    (note,) = [one for one in cs.inspect(folder).notes if "quant_method" in one]
    assert "says quant_method awq, but the shapes of 1 quantised tensor say GPTQ" in note


@pytest.mark.parametrize("verb", VERBS)
def test_codes_that_have_no_scales_at_all_are_said_by_every_command(verb: str, tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in state.items() if "scale" not in key}, folder / "model.safetensors")
    (note,) = [one for one in VERBS[verb](folder).notes if "no quantised tensor" in one][:1]
    what = "no quantised tensor has scales of weights, which fp8 needs: "
    assert note.partition(": ")[2].startswith(what)
