"""Three small models, and an evaluation command whose score has its maximum at known weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

Evaluation = Callable[..., str]

READ = """
import json, struct, sys, array
def weights(path):
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    begin, end = header["w"]["data_offsets"]
    return array.array("f", data[begin:end])
"""
"""It starts in a twentieth of a second: it imports neither torch nor numpy."""


@pytest.fixture(autouse=True)
def models() -> None:
    """Write a base of zeros, and models that are one in another element each: a merge's weights can be read off."""
    for name, place in (("base", None), ("a", 0), ("b", 1)):
        w = torch.zeros(4)
        if place is not None:
            w[place] = 1.0
        save_file({"w": w, "v.weight": torch.full((3, 3), 1.0 + (place or 0))}, f"{name}.safetensors")
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, {"search": [0, 1]})))


def recipe(first: Any, second: Any, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "task_arithmetic",
        "base_model": "base.safetensors",
        "models": [
            {"model": "a.safetensors", "parameters": {"weight": first}},
            {"model": "b.safetensors", "parameters": {"weight": second}},
        ],
        **more,
    }


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Return a function that writes a script, and returns the command that runs it on a model."""

    def write(
        body: str = "print('score:', -(w[0] - 0.75) ** 2 - (w[1] - 0.25) ** 2)", name: str = "evaluate.py"
    ) -> str:
        (tmp_path / name).write_text(f"{READ}\nw = weights(sys.argv[1])\n{body}\n")
        return f"{sys.executable} -I -S {tmp_path / name} {{model}}"

    return write
