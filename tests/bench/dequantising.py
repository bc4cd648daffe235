"""The rows of ``convert --dequantize``: block fp8 to bfloat16, beside a copy of the output and the same sum in torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from .harness import MB, Row, ckpt, python, rounds

__all__ = ["dequantising"]

MAKE = """
import json, os, torch
from safetensors.torch import save_file
os.makedirs("fp8", exist_ok=True)
torch.manual_seed(0)
state = {}
for layer in range(LAYERS):
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    state[name] = torch.randn(4096, 16384).to(torch.float8_e4m3fn)
    state[name + "_scale_inv"] = torch.rand(32, 128) / 100
save_file(state, "fp8/model.safetensors", {"format": "pt"})
settings = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
json.dump({"model_type": "llama", "dtype": "bfloat16", "quantization_config": settings}, open("fp8/config.json", "w"))
"""
TORCH = """
import os, torch
from safetensors.torch import load_file, save_file
state, made = load_file("fp8/model.safetensors"), {}
for name in [name for name in state if name.endswith("weight")]:
    scale = state[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
    made[name] = (state[name].float() * scale).bfloat16()
save_file(made, "torch.safetensors", {"format": "pt"})
os.sync()
"""


def dequantising(folder: str, number: int, *, layers: int = 16) -> Iterator[Row]:
    """Decoding 1 GB of codes runs at the speed of writing the 2 GB of weights, and never holds them."""
    subprocess.run(python(MAKE.replace("LAYERS", str(layers))), cwd=folder, check=True)
    subprocess.run(ckpt("convert", "fp8", "--dequantize", "-o", "whole.safetensors", "-q"), cwd=folder, check=True)

    def clean() -> None:
        for name in ("out.safetensors", "torch.safetensors", "copy.safetensors"):
            if os.path.exists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
        os.sync()

    seen = rounds(
        {
            "cp": ["sh", "-c", "cp whole.safetensors copy.safetensors && sync copy.safetensors"],
            "ours": ckpt("convert", "fp8", "--dequantize", "-o", "out.safetensors", "-q"),
            "torch": python(TORCH),
            "pass": python("pass"),
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    ours, base = seen["ours"], seen["pass"].peak
    for other, bound, what in (
        ("cp", 1.5, "cp of the output and sync"),
        ("torch", 0.3, "the same in torch, all in memory"),
    ):
        theirs = seen[other].time
        busy = f"{ours.processor:.2f} s / {seen[other].processor:.2f} s of processors"
        seconds = f"{ours.time:.2f} s / {theirs:.2f} s; {busy}"
        yield Row(f"dequantise 1 GB of block fp8 to 2 GB of bfloat16 / {what}", ours.time / theirs, bound, seen=seconds)
    peak, other_peak = (ours.peak - base) / MB, (seen["torch"].peak - base) / MB
    yield Row("its memory / that of torch", peak / other_peak, 0.05, seen=f"{peak:.0f} MB / {other_peak:.0f} MB")
    yield Row("its memory, over python -c pass", peak, 64 + 25, unit="MB", seen="with numpy")
    for name in ("fp8", "whole.safetensors"):
        path = os.path.join(folder, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
