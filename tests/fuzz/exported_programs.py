"""torch.export: tensors in records, pickled tensors, constants, weights beside a compiled program, and old archives."""

import json

import torch

from ..helpers.export_files import archive, entry, program
from ..helpers.torch_files import saved
from .target import Files, Target, in_parts, numbered, read


def make() -> Files:
    records = {
        "data/weights/weight_0": bytes(24),
        "data/weights/weight_1": saved(torch.ones(2)),
        "data/constants/tensor_0": bytes(16),
    }
    weights = {"a.w": entry("weight_0"), "b": entry("weight_0", (3,), (2,)), "c": entry("weight_1", use_pickle=True)}
    compiled = {
        "m/archive_format": b"pt2",
        "m/data/weights/weight_1": saved(torch.ones(2)),
        "m/data/aotinductor/net/weights_config.json": json.dumps({"v": ["weight_1", [2], [1], 0]}).encode(),
    }
    old = {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": saved({"a": torch.ones(2)})}
    return {
        "program.pt2": program(weights, records, {"d": entry("tensor_0", (2,), (1,), dtype=5)}),
        "compiled.pt2": archive(compiled),
        "old.pt2": archive(old),
    }


def read_all(_: str) -> None:
    """Read all archives; at most one of them is changed."""
    for name in ("old.pt2", "compiled.pt2", "program.pt2"):
        read(name)


TARGET = Target(in_parts("exported_programs", read_all), make, numbered)
