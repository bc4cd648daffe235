"""What settings ask of single modules, of activations and of whole folders, and codes do not have: said, if so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.quantised import exponents, fp8, scales
from ...helpers.zoo import BY_NAME, IN, LAYERS, OUT, Quantised
from .test_missing_parts import State
from .test_sizes_and_schemes import FP8, INT4, NVFP4, channel, compressed, packed

Store = Callable[[torch.Generator], State]
SHAPES = "but the shapes of 2 quantised tensors say"
E4M3, BLOCKS = torch.float8_e4m3fn, {"quant_method": "fp8", "weight_block_size": [32, 64]}
STATIC, LOCAL = {"num_bits": 8, "dynamic": False}, {"num_bits": 4, "dynamic": "local"}


RANDOM = ("scales of 0 for codes", "negative scales")
"""Notes on the values of scales, which are random here."""


def said(folder: Path) -> list[str]:
    notes = (note.partition(": ")[2] for note in cs.inspect(folder).notes if "quanti" in note)
    return [note for note in notes if not any(one in note for one in RANDOM)]


def model(store: Store | str, settings: dict[str, Any]) -> Quantised:
    return Quantised("", "", BY_NAME[store].store if isinstance(store, str) else store, settings)


def with_inputs(
    inputs: dict[str, Any], weights: dict[str, Any] = FP8, format: str = "float-quantized"
) -> dict[str, Any]:
    found = compressed(format, weights)
    found["config_groups"]["group_0"]["input_activations"] = inputs
    return found


def aimed(*groups: tuple[int, str], format: str = "pack-quantized") -> dict[str, Any]:
    each = {
        f"group_{i}": {"targets": [to], "weights": {**INT4, "num_bits": bits}} for i, (bits, to) in enumerate(groups)
    }
    return compressed(format, {}, config_groups=each)


def blocks(g: torch.Generator) -> State:
    return {".weight": fp8(g, OUT, IN), ".weight_scale_inv": scales(g, 2, 2)}


def one_scale(g: torch.Generator) -> State:
    return {".weight": fp8(g, OUT, IN), ".weight_scale_inv": scales(g)}


def doubled(g: torch.Generator) -> State:
    """An 8-bit float of DeepSeek-V4, whose scales are exponents."""
    return {".weight": fp8(g, OUT, IN), ".weight_scale_inv": exponents(g, OUT, IN // 32)}


GPTQ, MLX = BY_NAME["gptq"].settings, BY_NAME["mlx"].settings
NV, NV_FORMAT = "nvfp4-packed", "nvfp4-pack-quantized"
NO_INPUTS = "no quantised tensor has scales of activations, which"
TAKEN = "no target of its quantization_config, so a loader treats"

WRONG: list[tuple[Store | str, dict[str, Any], str]] = [
    (packed, aimed((4, "re:.*k_proj"), (8, "re:.*q_proj")), "num_bits 8, but the shapes of 1 quantised tensor say 4"),
    ("gptq", {**GPTQ, "dynamic": {"+:.*q_proj": {"bits": 8}}}, "bits 8, but the shapes of 1 quantised tensor say 4"),
    ("mlx", {**MLX, LAYERS[0]: {"group_size": 64, "bits": 8}}, "bits 8, but the shapes of 1 quantised tensor say 4"),
    ("mlx", {**MLX, "mode": "mxfp4"}, f"mode mxfp4, {SHAPES} affine"),
    ("gptq", {**GPTQ, "checkpoint_format": "marlin"}, f"checkpoint_format marlin, {SHAPES} gptq"),
    ("gptq", {**GPTQ, "modules_in_block_to_quantize": [["self_attn.k_proj"]]},
     "excludes 1 quantised tensor by modules_in_block_to_quantize"),
    (blocks, {"quant_method": "fp8", "weight_block_size": None}, f"weight_block_size null, {SHAPES} block scales"),
    (lambda g: channel(g, E4M3), compressed("float-quantized", {**FP8, "strategy": "tensor"}),
     f"strategy tensor, {SHAPES} channel"),
    ("fp8-tensor", compressed("float-quantized", FP8), f"strategy channel, {SHAPES} tensor"),
    (packed, aimed((4, "re:.*k_proj")), f"1 quantised tensor matches {TAKEN} it as not quantised"),
    (packed, aimed((4, "MixtralSparseMoeBlock")), f"2 quantised tensors match {TAKEN} them as not quantised"),
    ("mxfp4", BLOCKS, f"quant_method fp8, {SHAPES} mxfp4"),
    (blocks, compressed("float-quantized", {**FP8, "strategy": "block"}),
     "2 quantised tensors have weight_scale_inv, but with the quant_method compressed-tensors in its "
     "quantization_config, loaders look for weight_scale"),
    (blocks, {**BLOCKS, "activation_scheme": "static"}, f"{NO_INPUTS} activation_scheme static needs"),
    (lambda g: channel(g, E4M3), with_inputs(STATIC), f"{NO_INPUTS} dynamic false of input_activations needs"),
]  # fmt: skip


@pytest.mark.parametrize(("store", "settings", "note"), WRONG, ids=[note[:40] for *_, note in WRONG])
def test_settings_that_codes_do_not_have_are_said(
    store: Store | str, settings: dict[str, Any], note: str, tmp_path: Path
) -> None:
    assert any(f"{note}: " in found for found in said(model(store, settings).folder(tmp_path / "m")))


SOUND: list[tuple[Store | str, dict[str, Any]]] = [
    (packed, aimed((4, "re:.*k_proj"), (4, "re:.*q_proj"))),
    (packed, aimed((4, "Linear"), (8, "re:.*experts.*"))),
    (packed, aimed((4, "re:language_model.model.*k_proj"), (4, "re:.*q_proj"))),  # named as another version does
    (packed, aimed((8, "re:(?=.*)experts"), (4, "re:.*q_proj"), (4, "re:.*k_proj"))),  # not evaluated
    ("gptq", {**GPTQ, "dynamic": {"+:.*down_proj": {"bits": 8}}}),
    ("gptq", {**GPTQ, "modules_in_block_to_quantize": [["self_attn.k_proj", "self_attn.q_proj"]]}),
    ("mlx", {**MLX, "mode": "affine"}),
    ("mlx", {**MLX, "mode": "mxfp4", **{layer: {"group_size": 64, "bits": 4} for layer in LAYERS}}),
    (one_scale, {"quant_method": "fp8", "weight_block_size": None}),  # Mistral's
    (lambda g: {**one_scale(g), ".activation_scale": scales(g)}, {"quant_method": "fp8", "activation_scheme": "static"}),
    (lambda g: {**channel(g, E4M3), ".input_scale": scales(g)}, with_inputs(STATIC)),
    (lambda g: channel(g, E4M3), with_inputs({"num_bits": 8, "dynamic": True})),
    (NV, with_inputs(LOCAL, NVFP4, NV_FORMAT)),
    (doubled, BLOCKS | {"weight_block_size": [1, 32]}),
    (packed, compressed("pack-quantized", INT4, kv_cache_scheme={"num_bits": 8, "dynamic": False})),  # scales of 1
]  # fmt: skip


@pytest.mark.parametrize(("store", "settings"), SOUND)
def test_settings_that_are_those_of_the_codes_are_not_faulted(
    store: Store | str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert said(model(store, settings).folder(tmp_path / "m")) == []


def test_nothing_is_said_of_targets_that_are_not_evaluated(tmp_path: Path) -> None:
    one = replace(model(packed, aimed((4, "re:.*k_proj"))), layers=(*LAYERS, f"model.{'a' * 200}.k_proj"))
    assert said(one.folder(tmp_path / "m")) == []


@pytest.mark.parametrize("name", ["gptq", "int4-second-group", "nvfp4-packed"])
def test_layers_of_another_method_in_a_folder_of_fp8_are_said(name: str, tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    other = replace(BY_NAME[name], layers=("model.layers.1.self_attn.q_proj",)).tensors()
    save_file({**BY_NAME["fp8-block"].tensors(), **other}, folder / "model.safetensors")
    assert "says quant_method fp8, but the shapes of 1 quantised tensor say " in "\n".join(said(folder))


def test_one_layer_without_scales_of_activations_is_said(tmp_path: Path) -> None:
    one = model(lambda g: {**channel(g, E4M3), ".input_scale": scales(g)}, with_inputs(STATIC))
    one = replace(one, layers=("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"))
    folder, state = one.folder(tmp_path / "m"), one.tensors()
    state.pop(f"{one.layers[0]}.input_scale")
    save_file(state, folder / "model.safetensors")
    (note,) = said(folder)
    assert "1 quantised tensor lacks scales of activations, which dynamic false of input_activations needs" in note


def test_two_settings_of_mlx_that_differ_are_said(tmp_path: Path) -> None:
    folder = BY_NAME["mlx"].folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {**MLX, "group_size": 32}}))
    assert "group_size is 64 in config.json, and 32 in config.json (quantization)" in said(folder)
    (folder / "config.json").write_text(json.dumps({**config, "quantization": MLX}))
    assert said(folder) == []


@pytest.mark.parametrize(("algorithm", "is_said"), [("NVFP4", True), ("FP8", False), ("MIXED_PRECISION", False)])
def test_another_algorithm_in_the_file_of_modelopt_is_said(algorithm: str, is_said: bool, tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    document = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8"},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(document))
    note = f"hf_quant_config.json says quant_algo NVFP4, {SHAPES} fp8 with block scales: "
    assert [one.startswith(note) for one in said(folder)] == [True] * is_said
