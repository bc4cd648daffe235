"""Plans that were edited: what contradicts itself or its inputs is refused, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def plan() -> dict[str, Any]:
    torch.manual_seed(0)
    torch.save({"a": torch.tensor([[1.7, 2.9], [0.5, 3.0]]), "b": torch.ones(3)}, "src.pth")
    Path("dst.yaml").write_text(
        "model:\n  tensors:\n    a: {shape: [2, 2]}\n    b: {shape: [3]}\n    c: {shape: [2], init: ones}\n"
        "    d: {shape: [2]}\n  tied: [[c, d]]\n"
    )
    data: dict[str, Any] = cs.transplant("src.pth", "dst.yaml").to_json()
    return data


EDITS: dict[str, Edit] = {
    "a step twice": lambda p: p["steps"].append(p["steps"][0]),
    "a step less": lambda p: p["steps"].pop(),
    "no step": lambda p: p["steps"].clear(),
    "another class": lambda p: p["steps"][0].update({"class": "zzz"}),
    "other counts": lambda p: p["counts"].update({"copied": 7}),
    "no fingerprint": lambda p: p["sources"][0].update({"files": []}),
    "a fraction to an integer": lambda p: p["steps"][0].update({"dtype": "int8", "class": "cast"}),
    "tied to nothing": lambda p: p["steps"][1].update({"tied_to": "nosuch"}),
    "tied to a later one": lambda p: p["steps"][0].update({"tied_to": "b"}),
    "tied to another shape": lambda p: p["steps"][1].update({"tied_to": "a"}),
    "no such dtype": lambda p: p["steps"][0].update({"dtype": "magic"}),
    "no such source dtype": lambda p: p["steps"][0]["from"].update({"dtype": "magic"}),
    "no such source": lambda p: p["steps"][0]["from"].update({"source": "magic"}),
    "no such operation": lambda p: p["steps"][0].update({"op": "magic"}),
    "no such key": lambda p: p["steps"][0]["from"].update({"key": "magic"}),
    "a copy of another shape": lambda p: p["steps"][0].update({"shape": [4], "class": "reshaped"}),
    "a seed that is none": lambda p: p.update({"seed": "x"}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_refused(name: str, plan: dict[str, Any]) -> None:
    EDITS[name](plan)
    if name == "a fraction to an integer":
        plan["counts"] = {"copied": 1, "cast": 1, "initialised": 2}
    if name == "a copy of another shape":
        plan["counts"] = {"copied": 1, "reshaped": 1, "initialised": 2}
    Path("plan.json").write_text(json.dumps(plan))
    with pytest.raises(cs.CheckpointError) as caught:
        cs.apply("plan.json", "out.safetensors")
    assert caught.value.exit_code in (2, 4)
    assert not Path("out.safetensors").exists()


def test_notes_travel_with_a_plan() -> None:
    torch.save({"module.a": torch.ones(2)}, "src.pth")
    Path("dst.yaml").write_text("model: {tensors: {a: {shape: [2]}}}")
    made = cs.transplant("src.pth", "dst.yaml")
    assert any("the prefix module" in note for note in made.notes)
    assert cs.Plan.from_json(made.to_json()).notes == made.notes


def test_the_file_of_the_model_s_class_must_be_as_it_was() -> None:
    code = "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.full((2,), {}))\n"
    Path("model_code.py").write_text(code.format("1.0"))
    Path("dst.yaml").write_text("model: {_target_: model_code.Net}")
    torch.save({"w": torch.ones(2)}, "src.pth")
    Path("plan.json").write_text(json.dumps(cs.transplant("src.pth", "dst.yaml").to_json()))
    cs.apply("plan.json", "before.safetensors")
    Path("model_code.py").write_text(code.format("9.0"))
    with pytest.raises(cs.PlanError, match="model_code.py has changed since the plan"):
        cs.apply("plan.json", "after.safetensors")


def test_a_configuration_of_the_same_size_is_told_apart(plan: dict[str, Any]) -> None:
    Path("plan.json").write_text(json.dumps(plan))
    Path("dst.yaml").write_text(Path("dst.yaml").read_text().replace("init: ones", "init: 3.14"[:10]))
    with pytest.raises(cs.PlanError, match="dst.yaml has changed"):
        cs.apply("plan.json", "out.safetensors")
