"""torch's archives as a whole: each record in turn, its checksum made anew."""

import torch

from ..helpers.torch_files import saved
from .target import Files, Target, in_parts, numbered


def make() -> Files:
    base = torch.arange(6.0).reshape(2, 3)
    state = {"a": base, "b": base.t(), "c": torch.nn.Parameter(torch.ones(2).half()), "d": torch.ones(2).to_sparse()}
    return {"model.pth": saved({"state_dict": state, "epoch": 3, "names": ["x", ("y", 1.5)]})}


TARGET = Target(in_parts("archives", path="model.pth"), make, numbered)
