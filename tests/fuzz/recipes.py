"""Recipes of ours, as YAML."""

import os
import tempfile

import torch

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
from ckptsurgeon.api.recipes import load_plan

SEEDS = [
    b"verb: rename\nsource: a.pth\nrules: [a=c]\noutput: o.pth\nassert: {count: 2}\n",
    b"destination: {like: a.pth}\nsource: a.pth\nexclude: [b]\n",
    b"verb: average\nsources: [a.pth, a.pth]\n",
]


def run(data: bytes) -> None:
    with open("r.yaml", "wb") as file:
        file.write(data)
    load_plan("r.yaml")


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    fuzz(run, SEEDS)
