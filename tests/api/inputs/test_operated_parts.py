"""Operations on stored parts of quantised tensors: copied together, or refused; never computed on or separated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.depth import each_in_turn
from ...helpers.quantised import Quantised
from ...helpers.zoo import ZOO

COMPUTED: Mapping[str, Mapping[str, Any]] = {
    "shift": {"by": 1}, "scale": {"by": 2}, "zero": {}, "reshape": {"shape": [-1]}, "transpose": {}, "slice": {"end": 1},
    "take": {"indices": "0"}, "tile": {"times": 2}, "halves": {"heads": 2}, "pairs": {"heads": 2},
    "repeat": {"heads": 2, "to": 4}, "pool": {"heads": 4, "to": 2}, "combine": {"groups": "0+1"}, "blocks": {"to": "q8_0"},
    "noise": {"of": "0,0", "by": 0.1}, "split": {"into": ["e1", "e2"]}, "unstack": {"into": "u.{i}"},
    "concat": {"into": "c"}, "stack": {"into": "c"}, "add": {"into": "c"}, "mean": {"into": "c"},
    "permute": {"dims": [1, 0]}, "pad": {"size": 300}, "quantize": {"to": "int8"},
}  # fmt: skip
"""Every operation on stored tensors but copy, with its fields."""


def parts(folder: Path) -> dict[str, str]:
    """The parts of the first quantised tensor of a folder: its keys, by their endings."""
    with cs.open_checkpoint(folder) as one:
        return dict(one.codes.tensors[0].parts)


def one(key: str) -> str:
    return f"re:{re.escape(key)}"


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8)


def copied(key: str) -> str:
    """The key of a copy of a part in another module."""
    return re.sub(r"(gate_up|k|q)_proj", "z_proj", key)


@pytest.mark.costly
@pytest.mark.parametrize(("number", "quantised"), [*enumerate(ZOO)], ids=[each.name for each in ZOO])
def test_no_operation_computes_on_a_part(number: int, quantised: Quantised, tmp_path: Path) -> None:
    """Each encoding with two operations, each operation with at least four encodings: all are refused in one place."""
    folder = quantised.folder(tmp_path / "a")
    for verb in list(COMPUTED)[number % (len(COMPUTED) // 2) :: len(COMPUTED) // 2]:
        for key in parts(folder).values():
            with pytest.raises(cs.PlanError) as caught:
                cs.rename(folder, operations=[{verb: one(key), **COMPUTED[verb]}])
            assert key in str(caught.value) or "quantised" in str(caught.value) or verb == "blocks"


@each_in_turn("quantised", ZOO)
def test_no_part_is_scaled_by_another(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    keys = [*parts(folder).values()]
    for key, other in pairwise(keys):
        with pytest.raises(cs.PlanError, match=r"quantised|only floating-point tensors|is one number|only be copied"):
            cs.rename(folder, operations=[{"exp_scale": [one(key), one(other)], "into": "c"}])


@each_in_turn("quantised", ZOO)
def test_shift_and_reshape_name_the_tensor_and_its_encoding(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    for key in parts(folder).values():
        with pytest.raises(cs.PlanError, match="quantised"):
            cs.rename(folder, operations=[{"reshape": one(key), "shape": [1, -1]}])
        if load_file(folder / "model.safetensors")[key].dtype in (torch.float8_e4m3fn, torch.float32, torch.float16):
            with pytest.raises(cs.PlanError, match="is quantised.*the operation shift .* as numbers") as caught:
                cs.rename(folder, operations=[{"shift": one(key), "by": 1}])
            assert caught.value.hint


@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_a_copy_of_one_part_is_refused(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    found = parts(folder)
    for number, key in enumerate(found.values() if len(found) > 1 else ()):
        ways = (["elsewhere"], [f"{key}.x"], ["elsewhere", key], [copied(key)])
        for into in ways[number % 2 :: 2]:  # each way is tried with one of the first two parts
            with pytest.raises(cs.PlanError, match="is quantised .*(would be separated|no longer have matching names)"):
                cs.rename(folder, operations=[{"copy": one(key), "into": into}])


@pytest.mark.costly
@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_a_copy_of_all_parts_is_a_copy_of_the_weight(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    found = parts(folder)
    rows = [{"copy": one(key), "into": [key, copied(key)]} for key in found.values()]
    cs.apply(cs.rename(folder, operations=rows), tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert after.keys() == before.keys() | {copied(key) for key in found.values()}
    for key, tensor in after.items():
        source = next((part for part in found.values() if copied(part) == key), key)
        assert torch.equal(raw(tensor), raw(before[source])), key
    with cs.open_checkpoint(tmp_path / "out") as out:
        assert copied(next(iter(found.values()))) in out.codes.by_key
    assert cs.verify(tmp_path / "out").ok


def test_parts_in_all_layers_are_not_copied_to_another_module(tmp_path: Path) -> None:
    folder = next(each for each in ZOO if each.name == "gptq").folder(tmp_path / "a")
    rows = [{"copy": "model.layers.0.self_attn.*.g_idx", "into": ["e.*.x"]}]
    with pytest.raises(cs.PlanError, match=r"g_idx to e\.") as caught:
        cs.rename(folder, operations=rows)
    assert caught.value.hint == "Rename the module that contains these parts, so that their names end as before."


def test_a_copy_of_a_changed_part_is_no_copy(tmp_path: Path) -> None:
    folder = next(each for each in ZOO if each.name == "fp8-channel").folder(tmp_path / "a")
    rows: list[dict[str, Any]] = [{"shift": "**.k_proj.weight", "by": 1}]
    rows += [{"copy": "model.layers.0.self_attn.k_proj", "into": "model.layers.0.self_attn.z_proj"}]
    with pytest.raises(cs.PlanError, match="the operation shift .* would use its codes as numbers"):
        cs.rename(folder, operations=rows)


@each_in_turn("quantised", ZOO)
def test_other_tensors_of_a_quantised_model_may_be_computed(quantised: Quantised, tmp_path: Path) -> None:
    folder = quantised.folder(tmp_path / "a")
    rows: list[dict[str, Any]] = [
        {"shift": "model.norm.weight", "by": 1},
        {"copy": "model.norm.weight", "into": ["model.norm.weight", "model.norm2.weight"]},
        {"transpose": "model.embed_tokens.weight"},
    ]
    cs.apply(cs.rename(folder, operations=rows), tmp_path / "out")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after["model.norm2.weight"], before["model.norm.weight"].float() + 1)
    for key in parts(folder).values():
        assert torch.equal(raw(after[key]), raw(before[key]))


def test_operations_on_plain_tensors_of_the_same_names(tmp_path: Path) -> None:
    save_file({"a.k_proj.weight": torch.ones(64, 128), "a.k_proj.weight_scale": torch.ones(64, 1)}, "x.safetensors")
    rows: list[dict[str, Any]] = [
        {"shift": "a.k_proj.weight", "by": 1},
        {"copy": "a.k_proj.weight_scale", "into": ["elsewhere"]},
        {"reshape": "elsewhere", "shape": [-1]},
    ]
    cs.apply(cs.rename("x.safetensors", operations=rows), "out.safetensors")
    found = load_file("out.safetensors")
    assert found["a.k_proj.weight"].sum() == 2 * 64 * 128
    assert found["elsewhere"].shape == (64,)


def test_a_decoded_weight_may_be_computed(tmp_path: Path) -> None:
    folder = next(each for each in ZOO if each.name == "fp8-channel").folder(tmp_path / "a")
    rows: list[dict[str, Any]] = [
        {"dequantize": "**.k_proj"},
        {"shift": "**.k_proj.weight", "by": 1},
        {"copy": "**.k_proj.weight", "into": ["x.weight"]},
    ]
    plan = cs.rename(folder, operations=rows)
    assert "x.weight" in {step.key for step in plan.steps}


def test_the_command_writes_nothing(tmp_path: Path, ckpt: Any) -> None:
    folder = next(each for each in ZOO if each.name == "fp8-channel").folder(tmp_path / "a")
    Path("o.yaml").write_text("- {shift: '**.k_proj.weight', by: 1}\n")
    assert ckpt("rename", str(folder), "--operations", "o.yaml", "-o", "out").code == 4
    assert not Path("out").exists()
