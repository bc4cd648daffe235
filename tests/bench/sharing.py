"""The rows of several processes: what two do on two cores, beside what one does on one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from .dequantising import MAKE as MAKE_FP8
from .harness import Row, ckpt, python, rounds, run

__all__ = ["sharing"]

MAKE = """
import torch
from safetensors.torch import save_file
torch.manual_seed(0)
for name in ("base", "one", "two"):
    save_file({f"layers.{n}.weight": torch.randn(4096, 4096) for n in range(LAYERS)}, f"{name}.safetensors")
save_file({f"layers.{n}.weight": torch.randn(600, 600) for n in range(2)}, "tiny.safetensors")
"""
SHARD = "250MB"


def sharing(folder: str, number: int, *, layers: int = 16) -> Iterator[Row]:
    """Work that computes is shared by two processes; each of them has to start, and to import torch."""
    run(python(MAKE.replace("LAYERS", str(2 * layers))), folder)
    run(python(MAKE_FP8.replace("LAYERS", str(layers))), folder)
    cores = sorted(os.sched_getaffinity(0))[:2]
    one = ["taskset", "-c", str(cores[0])]
    two = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "torch.distributed.run"]
    two += ["--nproc-per-node", "2", "-m", "ckptsurgeon"]
    ties = ["merge", "one.safetensors", "two.safetensors", "--base", "base.safetensors", "--method", "ties"]
    verbs = {"TIES of two onto a base, 2 GB": ties, "dequantise 1 GB of block fp8": ["convert", "fp8", "--dequantize"]}

    def clean() -> None:
        shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
        os.sync()

    tiny = ["convert", "tiny.safetensors", "--dtype", "bf16", "-o", "out", "--max-shard-size", "1MB", "-q"]
    for what, words in verbs.items():
        rest = ["-o", "out", "--max-shard-size", SHARD, "-q"]
        commands = {
            "one": [*one, *ckpt(*words, *rest)],
            "two": [*two, *words, *rest],
            "start one": [*one, *ckpt(*tiny)],
            "start two": [*two, *tiny],
        }
        seen = rounds(commands, folder, before=clean, number=number)
        clean()
        times = {name: seen[name].time - seen[f"start {name}"].time for name in ("one", "two")}
        parts = (f"{seen[name].time:.2f} s - {seen[f'start {name}'].time:.2f} s" for name in ("two", "one"))
        row = f"{what}: two processes on two cores / one on one core, less their starts"
        yield Row(row, times["two"] / times["one"], 0.6, seen=" / ".join(parts))
    for name in ("base", "one", "two", "tiny"):
        os.remove(os.path.join(folder, f"{name}.safetensors"))
    shutil.rmtree(os.path.join(folder, "fp8"))
