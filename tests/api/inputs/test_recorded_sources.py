"""Inputs that other inputs were made from, according to the recipes: they count twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import factors, peft_folder

SAID = "according to the recipe there: its weights count twice"


def model(path: str, seed: int) -> str:
    """A folder with two tensors; all folders have equal headers."""
    torch.manual_seed(seed)
    Path(path).mkdir(parents=True)
    save_file({"a.weight": torch.randn(4, 4), "b": torch.randn(4)}, f"{path}/model.safetensors")
    return path


@pytest.fixture(autouse=True)
def models() -> None:
    for seed, name in enumerate(("base", "ft1", "ft2", "ft3", "made")):
        model(name, seed)
    cs.apply(cs.average(["ft1", "ft2"]), "av/")


def counted(*paths: str) -> list[str]:
    """The notes of average and merge on inputs that count twice: both say the same."""
    averaged = [note for note in cs.average(paths).notes if "recipe" in note]
    merged = cs.merge(list(paths), method="linear", weights=[1] * len(paths)).notes
    assert averaged == [note for note in merged if "recipe" in note]
    return averaged


@pytest.mark.parametrize("path", ["ft2", "ft2/", "ft2/model.safetensors"])
def test_a_source_of_another_input_counts_twice(path: str) -> None:
    note = f"{path} is also a source of av, {SAID}"
    assert counted("av", path) == [note] == counted(path, "av", "ft3")


@pytest.mark.parametrize("output", ["made/x.safetensors", "x.pth", "x/"])
def test_whatever_the_output_was_made_by(output: str) -> None:
    cs.apply(cs.convert("ft1", dtype="fp16"), output)
    path = output.rstrip("/")
    assert counted("ft1", path) == [f"ft1 is also a source of {path}, {SAID}"]
    cs.apply(cs.merge(["ft1", "ft3"], method="slerp", t=0.5), output, force=True)
    assert counted("ft3", path) == [f"ft3 is also a source of {path}, {SAID}"]


def test_other_models_have_no_note() -> None:
    assert counted("av", "ft3") == counted("ft1", "ft2") == []
    shutil.copytree("ft3", "elsewhere/ft2")
    assert counted("av", "elsewhere/ft2") == []


def test_the_base_of_a_merge_and_of_an_adapter_may_be_given_again() -> None:
    cs.apply(cs.merge(["ft1", "ft2"], base="base", method="ties", density=0.5), "merged/")
    assert counted("merged", "base") == []
    plan = cs.merge(["merged", "ft3"], base="ft1", method="ties", density=0.5)
    assert not any("recipe" in note for note in plan.notes)


def test_a_recipe_of_mergekit_takes_layers_of_models_and_is_left_out() -> None:
    text = "models: [{model: ft1}, {model: ft2}]\nbase_model: base\nmerge_method: task_arithmetic\nparameters: {weight: 0.5}"
    Path("recipe.yaml").write_text(text)
    cs.apply(cs.merge("recipe.yaml"), "merged/")
    assert counted("merged", "base") == []


def test_a_checkpoint_that_was_overwritten_since_is_another_model() -> None:
    shutil.copy("ft3/model.safetensors", "ft2/model.safetensors")
    later = Path("av/model.safetensors").stat().st_mtime_ns + 1
    os.utime("ft2/model.safetensors", ns=(later, later))
    assert counted("av", "ft2") == []


def test_a_recipe_of_other_weights_is_not_believed() -> None:
    shutil.copy("ft3/model.safetensors", "av/model.safetensors")
    assert counted("av", "ft2") == []


@pytest.mark.parametrize("text", ["[]", "{", '{"verb":"average"}', '{"verb":"average","arguments":{},"sources":[1]}'])
def test_damaged_recipes_are_left_to_verify(text: str) -> None:
    Path("av/ckptsurgeon.json").write_text(text)
    assert [note for note in counted("av", "ft2") if "is damaged" not in note] == []


def swapped(tuned: str, base: str) -> list[str]:
    return [note for note in cs.lora_extract(tuned, base, rank=2).notes if "its recipe" in note]


def test_models_in_the_wrong_order_are_noted_by_extract() -> None:
    a, b = factors(4, 4)
    peft_folder("adapter", {"a.lora_A.weight": a, "a.lora_B.weight": b})
    cs.apply(cs.lora_merge("base", "adapter"), "tuned/")
    (note,) = swapped("base", "tuned")
    said = "tuned was made from base by lora merge, according to its recipe: the adapter would undo that change"
    assert note == f"{said}; for an adapter that makes this change, give tuned as the tuned model and base as the base"
    assert swapped("tuned", "base") == []
    cs.apply(cs.lora_merge("tuned", "adapter", weights=[-1]), "back/")
    assert swapped("tuned", "back") == []
    cs.apply(cs.merge(["ft1", "ft2"], base="ft3", method="task_arithmetic", weight=0.5), "merged/")
    assert len(swapped("ft3", "merged")) == 1
    assert swapped("merged", "ft3") == swapped("ft1", "merged") == swapped("ft1", "av") == []


def test_extract_from_a_copy_of_the_model_is_no_mistake() -> None:
    cs.apply(cs.convert("ft1", dtype="fp16"), "low/")
    assert swapped("ft1", "low") == []
    cs.apply(cs.lora_extract("ft1", "ft2", rank=2), "extracted/")
    Path("av/ckptsurgeon.json").write_text("[]")
    assert swapped("ft1", "av") == []
