"""Recipes of ours, as YAML: compiled into plans."""

from pathlib import Path

import torch

from ckptsurgeon.api.recipes import load_order

from .target import Files, Target, beside, ending

RECIPES = {
    "rename": "verb: rename\nsource: a.pth\nmap: [a=c]\noutput: o.pth\nassert: {count: 2, c: copied}\n",
    "filter": "verb: filter\nsource: a.pth\nexclude: [b]\nto: safetensors\nmax_shard_size: 5GB\n",
    "transplant": "destination: a.pth\nsource: a.pth\nexclude: [b]\non_mismatch: {a: init}\n",
    "average": "verb: average\nsources: [a.pth, a.pth]\n",
    "operations": "verb: rename\nsource: a.pth\noperations:\n  - {split: a, into: [c, d], dim: 0}\n",
}


def make() -> Files:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    return {"a.pth": Path("a.pth").read_bytes(), **{f"{name}.yaml": text.encode() for name, text in RECIPES.items()}}


TARGET = Target(beside("recipes", "input.yaml", lambda path: load_order(path).close()), make, ending(".yaml"))
