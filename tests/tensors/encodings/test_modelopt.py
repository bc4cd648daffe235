"""ModelOpt's settings say which modules are quantised, and that scales of inputs are stored: tensors that differ are said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.tensors.quantised.modules import Modules
from ckptsurgeon.tensors.quantised.settings import modelopt_of

from ...helpers.coded_models import LAYERS, QUICK, coded_tensors, said_by, silent, write_model
from ...helpers.depth import each_in_turn
from ...helpers.modelopt_models import FP8, NVFP4, fp8, hf_quant_config, nvfp4

State = dict[str, torch.Tensor]
ONE = "model.layers.3.mlp.up_proj"
KINDS = {"FP8": (fp8, FP8), "NVFP4": (nvfp4, NVFP4)}


def model(state: State, algorithm: str, place: str, excluded: tuple[str, ...] = ("lm_head",), **more: Any) -> Path:
    """A folder with the settings in config.json or in hf_quant_config.json."""
    settings = {**KINDS[algorithm][1], "ignore": [*excluded], **more}
    if place == "config.json":
        return write_model(Path("m"), state, settings)
    files = hf_quant_config(algorithm, excluded)
    files["hf_quant_config.json"]["quantization"] |= more
    return write_model(Path("m"), state, None, files)


def plain(state: State, *modules: str) -> State:
    left = {key: one for key, one in state.items() if key.rpartition(".")[0] not in modules}
    return {**left, **{f"{name}.weight": torch.randn(256, 128).half() / 12 for name in modules}}


def said(path: Path) -> list[str]:
    return [note for note in cs.inspect(path).notes if "quantised" in note]


def unsaid(path: Path, algorithm: str, *texts: str) -> list[str]:
    """The verbs that do not say it: of all verbs for one algorithm, of those that look at most for the other."""
    return silent(path, *texts) if algorithm == "NVFP4" else sorted({*QUICK} - {*said_by(path, *texts)})


each_case = each_in_turn(
    "algorithm, place",
    [
        ("FP8", "config.json"), ("FP8", "hf_quant_config.json"),
        ("NVFP4", "hf_quant_config.json"), ("NVFP4", "config.json"),
    ],
    share=2,
)  # fmt: skip
"""Both algorithms, one in each place; the next test has them the other way round."""


@pytest.mark.long
@pytest.mark.costly
@each_case
def test_an_excluded_module_with_codes_is_said(algorithm: str, place: str) -> None:
    state = coded_tensors(KINDS[algorithm][0])
    assert said(model(state, algorithm, place)) == []
    field = "ignore" if place == "config.json" else "exclude_modules"
    for entry, number in ((ONE, 1), ("model.layers.3.mlp", 3), ("model.layers.3.mlp*", 3), ("*.up_proj", LAYERS)):
        path = model(state, algorithm, place, ("lm_head", entry))
        (note,) = said(path)
        tensors = f"{number} quantised tensor{'s' * (number > 1)}"
        assert f"its quantization_config excludes {tensors} by {field} ({entry}): " in note
    assert unsaid(path, algorithm, note.partition(": ")[2]) == []


@pytest.mark.long
@pytest.mark.costly
@each_case
def test_a_plain_module_that_is_not_excluded_is_said(algorithm: str, place: str) -> None:
    state = plain(coded_tensors(KINDS[algorithm][0]), ONE)
    path = model(state, algorithm, place)
    assert unsaid(path, algorithm, "1 weight is not quantised, although other layers are", f"{ONE}.weight") == []
    for entry in (ONE, "model.layers.3.mlp*", "language_model.layers.3.mlp.*", "*.3.mlp.*"):
        others = () if entry == ONE else ("model.layers.3.mlp.gate_proj", "model.layers.3.mlp.down_proj")
        assert said(model(plain(state, *others), algorithm, place, ("lm_head", entry))) == []


VISUAL = tuple(f"visual.blocks.{number}.mlp.up_proj" for number in range(LAYERS))


@pytest.mark.costly
@pytest.mark.parametrize(
    "entries", [VISUAL, ("model.layers.2.*",), ("*.experts.3.*",), ("mlp*",), ("layers.2", "up_proj")]
)
@each_case
def test_entries_for_other_modules_exclude_nothing(algorithm: str, place: str, entries: tuple[str, ...]) -> None:
    """Entries with another prefix may name modules of this model, but not if quantised modules were excluded too."""
    state = plain(coded_tensors(KINDS[algorithm][0]), ONE)
    found = said(model(state, algorithm, place, ("lm_head", *entries)))
    assert [one for one in found if "1 weight is not quantised, although other layers are, and" in one]


@pytest.mark.costly
@each_case
def test_modules_that_are_plain_in_all_layers_are_said(algorithm: str, place: str) -> None:
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(LAYERS)]
    state = plain(coded_tensors(KINDS[algorithm][0]), *names)
    (note,) = said(model(state, algorithm, place))
    assert (
        f"{LAYERS} weights are not quantised in any layer, although its quantization_config does not exclude them"
        in note
    )
    assert said(model(state, algorithm, place, ("lm_head", "*up_proj"))) == []
    (note,) = said(model(state, algorithm, place, ("lm_head", "*" * 201)))  # too long to be compared
    assert "which may exclude them, are not evaluated" in note


def test_of_mixed_precision_nothing_is_said() -> None:
    state = plain(coded_tensors(fp8), ONE)
    assert said(model(state, "FP8", "config.json", quant_algo="MIXED_PRECISION", quantized_layers={})) == []


@pytest.mark.long
@pytest.mark.costly
@each_case
def test_lost_scales_of_inputs_are_said(algorithm: str, place: str) -> None:
    state = coded_tensors(KINDS[algorithm][0])

    def without(first: int) -> Path:
        left = {
            key: one
            for key, one in state.items()
            if not (key.endswith(".input_scale") and int(key.split(".")[2]) >= first)
        }
        return model(left, algorithm, place)

    needs = f"scales of activations, which quant_algo {algorithm} needs"
    assert unsaid(without(2), algorithm, f"14 quantised tensors lack {needs}") == []
    assert said(without(0)) == []  # loaders can use the weights alone


def test_other_algorithms_need_none() -> None:
    def encode(weight: torch.Tensor) -> State:
        return {end: one for end, one in fp8(weight).items() if end != ".input_scale"}

    state = coded_tensors(encode)
    assert said(model(state, "FP8", "config.json", quant_algo="FP8_PER_CHANNEL_PER_TOKEN")) == []


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"quant_method": "modelopt", "ignore": ["a"]}, True),
        ({"quant_method": "modelopt_fp4", "ignore": ["a"]}, True),
        ({"producer": {"name": "modelopt"}, "quantization": {"exclude_modules": ["a"]}}, True),
        ({"quantization": {"quant_algo": "FP8", "exclude_modules": ["a"]}}, True),
        ({"quant_method": "fp8", "ignore": ["a"]}, False),
        ({"quant_method": "modelopt", "ignore": "a"}, False),
        ({"quant_method": "modelopt", "ignore": [1, None, ["a"]]}, False),
        ({"producer": "modelopt", "quantization": 3}, False),
    ],
)
def test_settings_of_any_content_are_read(settings: Mapping[str, Any], found: bool) -> None:
    assert bool(Modules(settings).left_out("a")) is found
    assert isinstance(modelopt_of(settings), dict)


def test_many_entries_and_hard_ones_take_little_time() -> None:
    hard = ["*a*a*a*a*a*b", "a" * 500 + "*", *(f"layers.{number}.*" for number in range(1000))]
    modules = Modules({"quant_method": "modelopt", "ignore": hard})
    assert len(modules.unread) == 802
    assert modules.left_out("layers.7.mlp") == "ignore (layers.7.*)"
    assert not modules.left_out("a" * 10_000)
