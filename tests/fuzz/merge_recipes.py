"""mergekit's recipes, as YAML."""

import os
import tempfile

import torch

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
import ckptsurgeon as cs

SEEDS = [
    b"merge_method: linear\nmodels:\n  - {model: a.pth, parameters: {weight: 0.5}}\n  - {model: a.pth, parameters: {weight: [0, 1]}}\n",
    b"merge_method: ties\nbase_model: a.pth\nparameters: {density: [{filter: a, value: 0.5}, {value: 1}]}\n"
    b"models: [{model: a.pth}, {model: a.pth, parameters: {weight: 1}}]\ndtype: float32\n",
    b"merge_method: passthrough\nslices:\n  - sources: [{model: a.pth, layer_range: [0, 1]}]\n  - sources: [{model: a.pth, layer_range: [0, 2]}]\n",
]


def run(data: bytes) -> None:
    with open("r.yaml", "wb") as file:
        file.write(data)
    cs.merge("r.yaml")


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    torch.save({f"model.layers.{i}.a": torch.ones(2, 3) for i in range(2)}, "a.pth")
    fuzz(run, SEEDS)
