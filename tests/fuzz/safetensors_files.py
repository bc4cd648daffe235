"""safetensors."""

import torch
from safetensors.torch import save

from .target import Files, Target, written


def make() -> Files:
    state = {"a": torch.ones(2), "b.c": torch.zeros(1, 3).half()}
    return {"two.safetensors": save(state, {"format": "pt"})}


TARGET = Target(written("x.safetensors"), make)
