"""The rows of several processes.

Two on two cores are measured beside one on one, in memory, and eight beside one where a device gives each 50 MB in a second.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
SHARD = "135MB"
"""Two tensors of the merge, or one of the dequantised model: sixteen shards, which two processes share evenly."""
RATE, EIGHT = 50_000_000, 8
THROTTLED = str(Path(__file__).with_name("throttled.py"))
MAKE_LLAMA = """
import torch
from safetensors.torch import save_file
wide, inner, words = 1024, 2816, 32000
sizes = {"self_attn.q_proj": (wide, wide), "self_attn.k_proj": (256, wide), "self_attn.v_proj": (256, wide)}
sizes |= {"self_attn.o_proj": (wide, wide), "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide)}
sizes |= {"mlp.down_proj": (wide, inner), "input_layernorm": (wide,), "post_attention_layernorm": (wide,)}
stored = {f"model.layers.{n}.{name}.weight": size for n in range(LAYERS) for name, size in sizes.items()}
stored |= {"model.embed_tokens.weight": (words, wide), "model.norm.weight": (wide,), "lm_head.weight": (words, wide)}
save_file({key: torch.randn(size).bfloat16() for key, size in stored.items()}, "llama.safetensors")
"""


MEMORY, ROOM = "/dev/shm", 10 << 30


def sharing(folder: str, number: int, *, layers: int = 16) -> Iterator[Row]:
    """Work that computes, shared by two processes; and eight processes that wait for their devices."""
    with in_memory(folder) as place:
        yield from computing(place, number, layers)
    run(python(MAKE_LLAMA.replace("LAYERS", str(2 * layers))), folder)
    yield from slow_device(folder, min(number, 2))
    for name in ("llama.safetensors", "receipt.json"):
        os.remove(os.path.join(folder, name))


@contextmanager
def in_memory(folder: str) -> Iterator[str]:
    """Yield a folder in memory, if there is room: two processes write 2 GB as fast as a disk, and then wait for it."""
    there = os.path.isdir(MEMORY) and shutil.disk_usage(MEMORY).free > ROOM
    place = tempfile.mkdtemp(dir=MEMORY if there else folder)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def computing(folder: str, number: int, layers: int) -> Iterator[Row]:
    """Work that computes is shared by two processes; each of them has to start, and to import torch."""
    run(python(MAKE.replace("LAYERS", str(2 * layers))), folder)
    run(python(MAKE_FP8.replace("LAYERS", str(layers))), folder)
    cores = sorted(os.sched_getaffinity(0))[:2]
    one = ["taskset", "-c", str(cores[0])]
    two = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "torch.distributed.run"]
    two += ["--nproc-per-node", "2", "-m", "ckptsurgeon"]
    ties = ["merge", "one.safetensors", "two.safetensors", "--base", "base.safetensors", "--method", "ties"]
    verbs = {"TIES of two onto a base, 2 GB": ties, "dequantise 1 GB of block fp8": ["convert", "fp8", "--dequantize"]}

    tiny = ["convert", "tiny.safetensors", "--dtype", "bf16", "-o", "out", "--max-shard-size", "1MB", "-q"]
    for what, words in verbs.items():
        rest = ["-o", "out", "--max-shard-size", SHARD, "-q"]
        commands = {
            "one": [*one, *ckpt(*words, *rest)],
            "two": [*two, *words, *rest],
            "start one": [*one, *ckpt(*tiny)],
            "start two": [*two, *tiny],
        }
        seen = rounds(commands, folder, before=lambda: clean(folder), number=number)
        clean(folder)
        times = {name: seen[name].time - seen[f"start {name}"].time for name in ("one", "two")}
        parts = (f"{seen[name].time:.2f} s - {seen[f'start {name}'].time:.2f} s" for name in ("two", "one"))
        row = f"{what}: two processes on two cores / one on one core, less their starts"
        yield Row(row, times["two"] / times["one"], 0.6, seen=" / ".join(parts))
        spent = {name: seen[name].processor - seen[f"start {name}"].processor for name in ("one", "two")}
        row = f"{what}: seconds of processors of two processes / of one, less their starts"
        yield Row(row, spent["two"] / spent["one"], 1.2, seen=f"{spent['two']:.2f} s / {spent['one']:.2f} s")


def slow_device(folder: str, number: int) -> Iterator[Row]:
    """What waits for its device takes an eighth of the time with eight processes, if they share it evenly."""
    words = ["rename", "llama.safetensors", "--map", "model=network", "--max-shard-size", "15MB"]
    seen = {processes: [throttled(folder, processes, words) for _ in range(number)] for processes in (1, EIGHT)}
    one, eight = (statistics.median(seen[processes]) for processes in (1, EIGHT))
    row = "rename 0.8 GB at 50 MB/s for each process: eight processes / one, from when all have joined"
    yield Row(row, eight / one, 0.16, seen=f"{eight:.2f} s / {one:.2f} s")


def throttled(folder: str, processes: int, words: list[str]) -> float:
    """Return the seconds from the moment that all processes have joined until the output is in place."""
    clean(folder)
    run([sys.executable, THROTTLED, str(processes), str(RATE), *words, "-o", "out", "--json"], folder)
    clean(folder)
    with open(os.path.join(folder, "receipt.json"), encoding="utf-8") as file:
        return float(json.load(file)["elapsed_s"])


def clean(folder: str) -> None:
    """Remove the output, and wait until everything is on disk."""
    shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
    os.sync()
