"""A model that is also the base, or that is given twice: its difference is zero, or counts twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs import sampled_parts

ZERO = "its change from the base is zero, so it can only make the merged change smaller"


@pytest.fixture(autouse=True)
def models() -> None:
    for number, name in enumerate(("base", "a", "b")):
        save_file({"w": torch.full((4, 4), number + 0.5)}, f"{name}.safetensors")


def notes(models: list[str], method: str, base: str | None = "base", **options: Any) -> list[str]:
    paths = [f"{one}.safetensors" for one in models]
    plan = cs.merge(paths, method=method, base=f"{base}.safetensors" if base else None, **options)
    return [note for note in plan.notes if ZERO in note or "twice" in note or "same weights" in note]


@pytest.mark.parametrize("method", ["model_stock", "task_arithmetic", "ties", "sce"])
def test_a_base_among_the_models_is_said(method: str) -> None:
    both = f"base.safetensors is both the base and a model: {ZERO}"
    assert notes(["base", "a", "b"], method) == notes(["a", "base", "b"], method) == [both]
    assert notes(["a", "b"], method) == []


def test_a_copy_or_another_path_of_the_base_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("base.safetensors", "copy.safetensors")
    os.symlink("base.safetensors", "link.safetensors")
    for name in ("copy", "link", "./base"):
        said = f"{name}.safetensors has the same weights as the base base.safetensors: {ZERO}"
        assert notes([name, "a"], "task_arithmetic") == [said]
    monkeypatch.setattr(sampled_parts, "LARGEST_FILE", 10)
    assert notes(["copy", "a"], "task_arithmetic") == []  # a large copy is not read
    for name in ("link", "./base"):
        assert ZERO in notes([name, "a"], "task_arithmetic")[0]


def test_a_large_model_under_two_paths_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled_parts, "LARGEST_FILE", 10)
    said = "./a.safetensors has the same weights as a.safetensors, so these weights count twice"
    assert notes(["a", "./a", "b"], "linear", None, weights=[1, 1, 1]) == [said]
    assert list(cs.average(["a.safetensors", "./a.safetensors"]).notes) == [said]
    assert not cs.average(["a.safetensors", "b.safetensors"]).notes


def test_a_base_that_is_merged_like_a_model_counts_twice() -> None:
    assert notes(["base"], "slerp", t=0.5) == ["base.safetensors is given twice, so its weights count twice"]
    assert notes(["a"], "slerp", t=0.5) == []


def test_a_model_that_is_given_three_times_counts_three_times() -> None:
    (said,) = cs.merge(["a.safetensors"] * 3, method="linear", weights=[1, 1, 1]).notes
    assert said == "a.safetensors is given 3 times, so its weights count 3 times"


@pytest.mark.parametrize(("method", "base"), [("linear", None), ("task_arithmetic", "base")])
def test_a_model_that_cancels_is_said_to(method: str, base: str | None) -> None:
    shutil.copy("a.safetensors", "copy.safetensors")
    said = "a.safetensors is given twice, and cancels in the sum"
    assert notes(["a", "a", "b"], method, base, weight=[1, -1, 1]) == [said]
    said = "copy.safetensors has the same weights as a.safetensors, and these weights cancel in the sum"
    assert notes(["a", "copy", "b"], method, base, weight=[1, -1, 1]) == [said]
    assert "count twice" in notes(["a", "a", "b"], method, base, weight=[1, -0.5, 1])[0]


def test_a_recipe_may_list_its_base_but_no_copy_of_it() -> None:
    shutil.copy("base.safetensors", "copy.safetensors")
    recipe = "merge_method: task_arithmetic\nbase_model: base.safetensors\nmodels:\n"
    part = "  - model: {}.safetensors\n    parameters: {{weight: 0.5}}\n"
    Path("good.yaml").write_text(f"{recipe}  - model: base.safetensors\n{part.format('a')}")
    Path("bad.yaml").write_text(f"{recipe}{part.format('copy')}{part.format('a')}")
    assert not cs.merge("good.yaml").notes
    said = f"copy.safetensors has the same weights as the base base.safetensors: {ZERO}"
    assert said in cs.merge("bad.yaml").notes
