"""Outputs of several shards, made by each verb."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from contextlib import chdir
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ..helpers.adapters import factors, peft_folder

__all__ = ["KEYS", "SHAPE", "SHARD", "VERBS", "files", "transplant", "write_sources"]

SHARD = "1MB"
SHAPE = (300, 1000)
KEYS = [f"layers.{number}.weight" for number in range(5)]


def write_sources() -> None:
    """Write three checkpoints, a configuration with one more tensor, an adapter and a quantised checkpoint."""
    shutil.copytree(_written_once(), ".", dirs_exist_ok=True)


@cache
def _written_once() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    with chdir(folder):
        _write_sources()
    return folder


def _write_sources() -> None:
    draw = torch.Generator().manual_seed(0)
    for name in ("a", "b", "c"):
        save_file({key: torch.randn(SHAPE, generator=draw) for key in KEYS}, f"{name}.safetensors")
    rows = [f"    {key}: {{shape: {list(SHAPE)}, init: {{normal: {{std: 0.02}}}}}}\n" for key in (*KEYS, "head.weight")]
    Path("dst.yaml").write_text("model:\n  tensors:\n" + "".join(rows))
    pairs = [(key.removesuffix(".weight"), *factors(*SHAPE)) for key in KEYS]
    peft_folder(
        "adapter", {f"{module}.lora_{one}.weight": t for module, a, b in pairs for one, t in (("A", a), ("B", b))}
    )
    cs.apply(cs.convert("a.safetensors", quantize="int8", include=KEYS), "int8")


def transplant() -> cs.Plan:
    """A plan that copies four tensors and draws two."""
    return cs.transplant("a.safetensors", "dst.yaml", exclude=["layers.1"])


VERBS: dict[str, Callable[[], cs.Plan]] = {
    "transplant": transplant,
    "rename": lambda: cs.rename("a.safetensors", map=["layers=blocks"]),
    "filter": lambda: cs.filter("a.safetensors", exclude=["layers.2"]),
    "convert": lambda: cs.convert("a.safetensors", dtype="float64"),
    "quantize": lambda: cs.convert("a.safetensors", quantize="int8", include=["layers.{1..3}"]),
    "dequantize": lambda: cs.convert("int8", dequantize=True),
    "average": lambda: cs.average(["a.safetensors", "b.safetensors"]),
    "merge": lambda: cs.merge(["b.safetensors", "c.safetensors"], method="ties", base="a.safetensors"),
    "lora merge": lambda: cs.lora_merge("a.safetensors", "adapter"),
}


def files(folder: str) -> dict[str, bytes]:
    """The bytes of every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
