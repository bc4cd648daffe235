"""Configurations of destinations, as YAML; those of a model's class are left out, which is imported."""

import os
import tempfile

import torch

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
import ckptsurgeon as cs

SEEDS = [
    b"model: {like: a.pth}\n",
    b"model:\n  tensors:\n    a: {shape: [2, 3], dtype: float16, init: {normal: {std: 0.02}}}\n    b: {shape: [5]}\n",
    b"model: {tensors: {a: {shape: [2, 3], init: zeros}, c: {tied_to: a}}}\n",
]


def run(data: bytes) -> None:
    if b"_target_" in data or b"!" in data or b"\\" in data:
        return
    with open("d.yaml", "wb") as file:
        file.write(data)
    cs.transplant("a.pth", "d.yaml", on_mismatch="pad")


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    fuzz(run, SEEDS)
