"""Files from before torch 1.6."""

import torch

from ..helpers.torch_files import saved
from .target import Files, Target, written


def make() -> Files:
    base = torch.arange(6.0)
    state = {"a": base, "b": base[2:4], "c": torch.nn.Parameter(torch.ones(2).half()), "d": torch.ones(2, 2).t()}
    made = saved({"model": state, "epoch": 3}, _use_new_zipfile_serialization=False)
    return {"model.pt": made, "plain.pt": saved({"a": base}, _use_new_zipfile_serialization=False)}


TARGET = Target(written("x.pt"), make)
