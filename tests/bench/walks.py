"""How much of the package three small commands pass through: functions, files and rooms.

    python -m tests.bench.walks

They are a transplant of four tensors into a declared destination, a merge of two models, and six steps of training.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import ckptsurgeon

ROOT = os.path.dirname(os.path.abspath(ckptsurgeon.__file__)) + os.sep

DESTINATION = """
model:
  tensors:
    encoder.weight: {shape: [4, 4], init: zeros}
    encoder.bias: {shape: [4], init: zeros}
    decoder.weight: {shape: [3, 4], init: zeros}
    decoder.bias: {shape: [3], init: zeros}
"""
TRAINING = """
model: {_target_: torch.nn.Linear, in_features: 4, out_features: 2}
train:
  task: classify
  data: {train: points.csv, tokens: classes.txt}
  steps: 6
  batch_size: 4
"""


class Walk(NamedTuple):
    """What a command passed through: distinct functions, files and rooms of the package, and calls of them."""

    functions: int
    files: int
    rooms: int
    calls: int


def walk(args: Sequence[str]) -> Walk:
    """Run a command and count; raises SystemExit where it fails."""
    from ckptsurgeon.cli import main

    calls: dict[tuple[str, str], int] = {}

    def look(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith(
            "<"
        )  # no class body, no lambda
        if event == "call" and is_function and code.co_filename.startswith(ROOT):
            name = code.co_filename, code.co_qualname
            calls[name] = calls.get(name, 0) + 1

    sys.setprofile(look)
    try:
        code = main(list(args))
    finally:
        sys.setprofile(None)
    if code:
        raise SystemExit(f"ckpt {' '.join(args)} ended with {code}")
    files = {file for file, _ in calls}
    rooms = {file[len(ROOT) :].partition(os.sep)[0] for file in files}
    return Walk(len(calls), len(files), len(rooms), sum(calls.values()))


def prepare() -> None:
    """Write what the commands read into the working directory."""
    import numpy as np
    import torch

    torch.manual_seed(0)
    source = {"encoder.weight": torch.randn(4, 4), "encoder.bias": torch.randn(4)}
    torch.save({**source, "decoder.weight": torch.randn(3, 4), "decoder.bias": torch.randn(3)}, "src.pth")
    torch.save({key: tensor + 1 for key, tensor in source.items()}, "a.pth")
    torch.save({key: tensor - 1 for key, tensor in source.items()}, "b.pth")
    Path("dst.yaml").write_text(DESTINATION)
    Path("train.yaml").write_text(TRAINING)
    Path("classes.txt").write_text("minus\nplus\n")
    rows = ["path,label"]
    for number in range(16):
        point = np.random.default_rng(number).standard_normal(4, dtype=np.float32)
        np.save(f"{number}.npy", point)
        rows.append(f"{number}.npy,{'plus' if point.sum() > 0 else 'minus'}")
    Path("points.csv").write_text("\n".join(rows) + "\n")


COMMANDS = {
    "transplant": ("transplant", "src.pth", "dst.yaml", "-o", "init.safetensors", "-q"),
    "merge": (
        "merge",
        "a.pth",
        "b.pth",
        "--method",
        "linear",
        "--weights",
        "0.5,0.5",
        "-o",
        "merged.safetensors",
        "-q",
    ),
    "train": ("train", "train.yaml", "--device", "cpu", "-q"),
}


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        prepare()
        print(f"{'command':12}{'functions':>10}{'files':>8}{'rooms':>8}{'calls':>9}")
        for name, args in COMMANDS.items():
            found = walk(args)
            print(f"{name:12}{found.functions:>10}{found.files:>8}{found.rooms:>8}{found.calls:>9,}")
        os.chdir(os.sep)


if __name__ == "__main__":
    main()
