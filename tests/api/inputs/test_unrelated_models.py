"""Models that were not trained from the base with which they are merged, or not from the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

Run = Callable[..., Any]
SAID = "was perhaps not trained from"
LAYERS, WIDTH = 6, 128


def model(name: str, seed: int, change: float = 0.0) -> str:
    """Write a model of random weights, plus ``change`` times other random weights, as of a training."""
    first, second = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(sum(map(ord, name)))
    state = {}
    for layer in range(LAYERS):
        weight = torch.randn(WIDTH, WIDTH, generator=first) + change * torch.randn(WIDTH, WIDTH, generator=second)
        state[f"model.layers.{layer}.up_proj.weight"] = weight / 50
        state[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(WIDTH)
    Path(name).mkdir()
    Path(name, "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(state, f"{name}/model.safetensors")
    return name


@pytest.fixture(autouse=True)
def models() -> None:
    model("base", 0)
    model("tuned", 0, 0.05)
    model("far", 0, 0.8)
    model("other", 1)


def noted(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if SAID in note]


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_linear"])
def test_a_model_of_another_base_is_noted(method: str) -> None:
    (said,) = noted(cs.merge(["tuned", "other"], base="base", method=method))
    assert said.startswith(f"other {SAID} the base base: 6 of 6 compared matrices differ by about 14")
    assert abs(float(said.rpartition("a cosine of ")[2])) < 0.1


def test_models_that_are_averaged_are_compared_with_the_first() -> None:
    for plan in (cs.average(["tuned", "other"]), cs.merge(["tuned", "other"], method="linear", weights=[1, 1])):
        (said,) = noted(plan)
        assert said.startswith(f"other {SAID} the same model as tuned: ")


def test_recipes_of_mergekit_and_extraction_have_the_note() -> None:
    models = [{"model": "tuned", "parameters": {"weight": 1}}, {"model": "other", "parameters": {"weight": 1}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    Path("recipe.yaml").write_text(json.dumps(recipe))
    assert len(noted(cs.merge("recipe.yaml"))) == 1
    assert len(noted(cs.lora_extract("other", "base", rank=4))) == 1
    assert not noted(cs.lora_extract("tuned", "base", rank=4))


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "int8"])
def test_quantised_models_are_decoded(scheme: str) -> None:
    for name in ("tuned", "other"):
        cs.apply(cs.convert(name, quantize=scheme), f"{name}-q")
    assert [one.partition(" ")[0] for one in noted(cs.average(["tuned", "tuned-q", "other-q"]))] == ["other-q"]


def test_tuned_models_are_not_noted() -> None:
    assert not noted(cs.merge(["tuned", "far"], base="base", method="ties"))
    assert not noted(cs.average(["base", "tuned", "far"]))


def test_checkpoints_of_one_training_may_be_far_apart() -> None:
    model("late", 0, 2.5)  # a cosine of 0.37 with the beginning
    assert not noted(cs.average(["base", "late"]))
    assert len(noted(cs.merge(["tuned", "late"], base="base", method="ties"))) == 1


def test_layers_that_were_trained_anew_do_not_make_a_note() -> None:
    state, other = load_file("tuned/model.safetensors"), load_file("other/model.safetensors")
    keys = [key for key in state if "up_proj" in key]
    Path("half").mkdir()
    save_file({**state, **{key: other[key] for key in keys[:3]}}, "half/model.safetensors")
    assert not noted(cs.merge(["tuned", "half"], base="base", method="ties"))
    save_file({**state, **{key: other[key] for key in keys[:4]}}, "half/model.safetensors")
    assert len(noted(cs.merge(["tuned", "half"], base="base", method="ties"))) == 1
