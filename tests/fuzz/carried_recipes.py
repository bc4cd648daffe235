"""The recipe that an output carries, as JSON, which verify reads."""

import json
import struct
from pathlib import Path

import torch

import ckptsurgeon as cs
from ckptsurgeon.formats._safetensors_layout import RECIPE_KEY

from .target import Files, Target, beside, ending


def use(path: str) -> None:
    """Verify an output whose recipe is the text in a file."""
    raw = Path("out.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"][RECIPE_KEY] = Path(path).read_text("utf-8", "replace")
    text = json.dumps(header).encode()
    Path("changed.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    cs.verify("changed.safetensors")


def make() -> Files:
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, "a.pth")
    cs.apply(cs.rename("a.pth", map=["a=c"]), "out.safetensors")
    with cs.open_checkpoint("out.safetensors") as found:
        recipe = found.recipe
    assert recipe
    return {
        "a.pth": Path("a.pth").read_bytes(),
        "out.safetensors": Path("out.safetensors").read_bytes(),
        "recipe.json": recipe.encode(),
    }


TARGET = Target(beside("carried_recipes", "input.json", use), make, ending(".json"))
