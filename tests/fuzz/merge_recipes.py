"""mergekit's recipes, as YAML: compiled into plans."""

from pathlib import Path

import torch

import ckptsurgeon as cs

from .target import Files, Target, beside, ending

RECIPES = {
    "linear": "merge_method: linear\nmodels:\n  - {model: a.pth, parameters: {weight: 0.5}}\n"
    "  - {model: b.pth, parameters: {weight: [0, 1]}}\ndtype: float16\n",
    "ties": "merge_method: ties\nbase_model: a.pth\nparameters: {density: [{filter: a, value: 0.5}, {value: 1}]}\n"
    "models: [{model: b.pth}, {model: c.pth, parameters: {weight: 1}}]\n",
    "passthrough": "merge_method: passthrough\nslices:\n  - sources: [{model: a.pth, layer_range: [0, 1]}]\n"
    "  - sources: [{model: a.pth, layer_range: [0, 2]}]\n",
    "modules": "merge_method: slerp\nmodules:\n  default: {models: [{model: a.pth}, {model: b.pth}]}\n"
    "parameters: {t: 0.5}\nbase_model: a.pth\ndtype: float32\n",
}


MODELS = ("a.pth", "b.pth", "c.pth")


def use(path: str) -> None:
    cs.merge(path)


def make() -> Files:
    for name in MODELS:
        torch.save({f"model.layers.{i}.a": torch.ones(2) for i in range(2)}, name)
    return {
        **{name: Path(name).read_bytes() for name in MODELS},
        **{f"{name}.yaml": text.encode() for name, text in RECIPES.items()},
    }


TARGET = Target(beside("merge_recipes", "input.yaml", use), make, ending(".yaml"))
