"""Contradictions between quantisation settings and tensors: which of them ``check`` reports as failures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.quantised_parts import incomplete
from ckptsurgeon.tensors.quantised.parts import IncompleteTensors
from ckptsurgeon.util.notes import is_serious

from ...tensors.encodings.test_missing_parts import IN, OUT, THREE, WEIGHTS, folder_of

METHODS = ["gptq", "awq", "fp8-block", "int4-packed"]


def found(path: Path, words: str) -> list[str]:
    """Return the statuses of the findings that contain ``words``."""
    return [one.status.value for row in cs.check(path).rows for one in row.found if words in one.what]


def without_codes(folder: Path) -> Path:
    state = load_file(folder / WEIGHTS)
    plain = {f"{stem}.weight": torch.randn(OUT, IN).bfloat16() for stem in THREE}
    save_file({key: one for key, one in state.items() if not key.startswith(THREE)} | plain, folder / WEIGHTS)
    return folder


def test_a_check_that_passes_says_which_encodings_it_found(tmp_path: Path) -> None:
    """Null is right for one scale for each tensor: whoever expected blocks reads here what is in the file."""
    state = {f"{stem}.weight": torch.randn(OUT, IN).to(torch.float8_e4m3fn) for stem in THREE}
    save_file({**state, **{f"{key}_scale_inv": torch.rand(()) for key in state}}, tmp_path / WEIGHTS, {"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    (row,) = (row for row in cs.check(tmp_path).rows if row.id == "quantisation")
    assert (row.status.value, row.looked_at) == ("PASS", "3 tensors fp8 with one scale")


@pytest.mark.costly
@pytest.mark.parametrize("name", METHODS)
def test_settings_without_any_quantised_tensor_fail(name: str, tmp_path: Path) -> None:
    folder, words = folder_of(name, tmp_path), "no tensor is quantised"
    config = json.loads((folder / "config.json").read_text())
    if name == "int4-packed":
        weights = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group", "symmetric": True}
        config["quantization_config"]["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
        (folder / "config.json").write_text(json.dumps(config))
    assert found(folder, words) == []
    assert found(without_codes(folder), words) == ["FAIL"]


@pytest.mark.parametrize(("method", "statuses"), [("bitsandbytes", ["WARN"]), ("torchao", []), ("hqq", [])])
def test_methods_that_quantise_while_loading_may_have_plain_weights(
    method: str, statuses: list[str], tmp_path: Path
) -> None:
    folder = without_codes(folder_of("gptq", tmp_path))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert found(folder, "no tensor is quantised") == statuses


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        ({"bits": 4, "group_size": 128}, ["FAIL"]),
        ({"quant_method": None, "bits": 4}, ["FAIL"]),
        ({}, ["FAIL"]),
        ({"load_in_4bit": True}, []),
        ({"quant_algo": "FP8"}, []),
        (None, []),
    ],
)
def test_settings_of_plain_weights_that_name_no_method_fail(
    settings: object, statuses: list[str], tmp_path: Path
) -> None:
    folder = without_codes(folder_of("gptq", tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    assert found(folder, "has no quant_method") == statuses


@pytest.mark.costly
@pytest.mark.parametrize("name", ["gptq", "awq"])
@pytest.mark.parametrize("factor", [2, 0.5])
def test_another_group_size_than_the_scales_have_fails(name: str, factor: float, tmp_path: Path) -> None:
    """Loaders make room for the scales by this number, so that they refuse the file or decode other weights."""
    folder = folder_of(name, tmp_path)
    assert found(folder, "quantization_config says") == []
    text = (folder / "config.json").read_text()
    changed = re.sub(r'("group_size": )(\d+)', lambda one: f"{one[1]}{int(int(one[2]) * factor)}", text)
    assert changed != text
    (folder / "config.json").write_text(changed)
    assert found(folder, "quantization_config says") == ["FAIL"]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("fp8-block", ".weight_scale_inv", ".weight_scale"), ("fp8-channel", ".weight_scale", ".weight_scale_inv")],
)
def test_scales_of_another_name_than_loaders_look_for_fail(name: str, old: str, new: str, tmp_path: Path) -> None:
    assert found(folder_of(name, tmp_path / "healthy"), "loaders look for") == []

    def rename(state: dict[str, torch.Tensor]) -> None:
        state[f"{THREE[1]}{new}"] = state.pop(f"{THREE[1]}{old}")

    assert found(folder_of(name, tmp_path, rename), "loaders look for") == ["FAIL"]


def test_weights_that_are_plain_in_every_layer_are_a_warning(tmp_path: Path) -> None:
    """Whether their class is one that the method quantises is not certain, unlike that of a module of other layers."""
    plain = {f"model.layers.{layer}.self_attn.q_proj.weight": torch.randn(OUT, IN) for layer in range(3)}
    folder = folder_of("fp8-block", tmp_path, lambda state: state.update(plain))
    assert found(folder, "not quantised in any layer") == ["WARN"]
    assert found(folder, "although other layers are") == []


PARTS = [f".weight.{end}" for end in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")]
PARTS.append(".weight.quant_state.bitsandbytes__nf4")


@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_parts_of_bitsandbytes_that_are_missing_fail_however_many(number: int, tmp_path: Path) -> None:
    def remove(state: dict[str, torch.Tensor]) -> None:
        for end in PARTS[:number]:
            del state[f"{THREE[0]}{end}"]

    assert found(folder_of("bnb-nf4", tmp_path, remove), " similar tensors have: ") == ["FAIL"] * (number > 0)


@pytest.mark.parametrize(
    ("parts", "serious"),
    [
        ("input_scale", False),
        ("k_scale and v_scale", False),
        ("act_scale, input_scale and output_scale", False),
        ("input_scale and weight_scale", True),
        ("input_scale, k_scale and weight_scale_2", True),
        ("weight_scale and input_scale", True),
    ],
)
def test_the_parts_that_loaders_can_do_without_are_those_of_activations(parts: str, serious: bool) -> None:
    lacking = [IncompleteTensors(part, ("a.weight",), 2) for part in re.split(", | and ", parts)]
    (note,) = incomplete("net", lacking)
    assert note == f"net: 1 quantised tensor lacks {parts}, which 2 similar tensors have: a.weight"
    assert is_serious(note) is serious


def settings_of(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_bits_that_the_shapes_contradict_fail(tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path)
    assert found(folder, "says bits") == []
    assert found(settings_of(folder, bits=8), "says bits 8, but the shapes of 3 quantised tensors say") == ["FAIL"]


def test_a_router_that_chooses_more_experts_than_there_are_fails(tmp_path: Path) -> None:
    gate = {f"model.layers.{layer}.mlp.gate.weight": torch.randn(4, 8) for layer in range(2)}
    save_file(gate, tmp_path / "model.safetensors")
    for chosen, status in ((8, "FAIL"), (4, "")):
        config = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": chosen}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = cs.check(tmp_path, skip=["class-tensors"]).row("configuration").found
        assert [one.status.value for one in found if "(num_experts_per_tok)" in one.what] == [status] * bool(status)


def changed_config(folder: Path, **fields: Any) -> Path:
    """Return ``folder`` after its quantization_config got the fields ``fields``; without fields, it is removed."""
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    (folder / "config.json").write_text(
        json.dumps(config | ({"quantization_config": {**settings, **fields}} if fields else {}))
    )
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_codes_without_settings_fail(name: str, tmp_path: Path) -> None:
    """transformers initialises weights of which it finds only codes, and refuses codes of another shape."""
    assert found(changed_config(folder_of(name, tmp_path)), "has no quantization_config for 3 quantised tensors") == [
        "FAIL"
    ]


@pytest.mark.parametrize(("name", "other"), [("gptq", "awq"), ("awq", "gptq")])
def test_the_other_method_of_packed_rows_fails(name: str, other: str, tmp_path: Path) -> None:
    assert found(changed_config(folder_of(name, tmp_path), quant_method=other), f"says quant_method {other}") == [
        "FAIL"
    ]


def test_zero_points_that_are_stated_but_missing_fail(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group", "symmetric": False}
    folder = folder_of("int4-packed", tmp_path, lambda state: [state.pop(f"{one}.weight_zero_point") for one in THREE])
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    assert found(changed_config(folder, config_groups=groups), "symmetric false") == ["FAIL"]
