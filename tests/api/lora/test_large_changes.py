"""Adapters whose changes are far larger than the weights of their base, as with a wrong lora_alpha."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

SAID = "times as large as the weights of the base: perhaps the adapter's alpha or its weight in the merge is wrong"
LAYERS, WIDTH, RANK = 4, 128, 8


def base(folder: str = "base", rows: int = 192) -> str:
    draw = torch.Generator().manual_seed(0)
    Path(folder).mkdir()
    Path(folder, "config.json").write_text(json.dumps({"model_type": "llama"}))
    state = {f"model.layers.{i}.up_proj.weight": torch.randn(rows, WIDTH, generator=draw) / 50 for i in range(LAYERS)}
    save_file(state, f"{folder}/model.safetensors")
    return folder


def adapter(alpha: float, *, turned: bool = False, layers: int = LAYERS, rows: int = 192, dora: bool = False) -> str:
    draw, state = torch.Generator().manual_seed(1), dict[str, torch.Tensor]()
    shape = (rows, WIDTH) if not turned else (WIDTH, rows)
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.up_proj"
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, shape[1], generator=draw) / 20
        state[f"{name}.lora_B.weight"] = torch.randn(shape[0], RANK, generator=draw) / 50
        if dora:
            state[f"{name}.lora_magnitude_vector"] = torch.ones(shape[0])
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "target_modules": ["up_proj"], "use_dora": dora}
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": turned}))
    save_file(state, "adapter/adapter_model.safetensors")
    return "adapter"


def noted(*given: str, **more: object) -> list[str]:
    return [note for note in cs.lora_merge("base", list(given), **more).notes if SAID in note]  # type: ignore[arg-type]


@pytest.mark.parametrize("turned", [False, True])
def test_changes_far_above_the_weights_are_noted(turned: bool) -> None:
    base()
    (said,) = noted(adapter(16384, turned=turned))
    assert said.startswith("in 4 of 4 compared weights, the changes by adapter are about ")
    times = float(said.partition(" about ")[2].partition(" ")[0])
    expected = 16384 / RANK * RANK**0.5 / 20  # A and B have deviations of 1/20 and 1/50
    assert times == pytest.approx(expected, rel=0.1)


def test_the_check_of_the_adapter_warns_if_the_base_is_given() -> None:
    base()
    row = cs.check(adapter(16384), base="base").row("adapter-config")
    assert [(one.status.value, SAID in one.what) for one in row.found] == [("WARN", True)]
    assert not cs.check("adapter").row("adapter-config").found


def test_a_large_weight_of_the_adapter_counts() -> None:
    base()
    assert noted(adapter(16), weights=[500])


@pytest.mark.parametrize("scheme", ["fp8-block", "int8"])
def test_a_quantised_base_is_decoded(scheme: str) -> None:
    base("plain")
    cs.apply(cs.convert("plain", quantize=scheme), "base")
    assert noted(adapter(16384))


@pytest.mark.parametrize("alpha", [0, 1, 8, 16, 64])
def test_usual_changes_are_not(alpha: float) -> None:
    base()
    assert not noted(adapter(alpha))
    assert not cs.check("adapter", base="base").row("adapter-config").found or not alpha


def test_dora_is_not() -> None:
    base()
    assert not noted(adapter(16384, dora=True))


@pytest.mark.parametrize("alpha", [8, 16384])
def test_the_only_module_is_noted_if_its_change_is_too_large(alpha: float) -> None:
    base()
    assert bool(noted(adapter(alpha, layers=1))) == (alpha > 8)


def test_one_of_several_modules_is_not() -> None:
    base()
    path = Path(adapter(8), "adapter_model.safetensors")
    factors = load_file(path)
    one = next(key for key in factors if "lora_B" in key)
    save_file({**factors, one: factors[one] * 2000}, path)
    assert not noted("adapter")


def test_a_base_of_zeros_is_not() -> None:
    Path("base").mkdir()
    save_file({f"model.layers.{i}.up_proj.weight": torch.zeros(192, WIDTH) for i in range(4)}, "base/model.safetensors")
    assert not noted(adapter(16384))
