"""The rows of ``ckpt patch``: a model of 2 GB in bfloat16, and one of which a fiftieth of the values differ."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from .harness import MB, Row, ckpt, python, rounds, run

__all__ = ["patching"]

MAKE = """
import torch
from safetensors.torch import save_file
draw = torch.Generator().manual_seed(0)
old, new, changed, size = {}, {}, 0, 0
for layer in range(LAYERS):
    weight = torch.randn(8192, 4096, generator=draw) * 0.02
    step = torch.randn(8192, 4096, generator=draw) * (torch.rand(8192, 4096, generator=draw) < 0.03)
    old[f"layers.{layer}.weight"] = weight.bfloat16()
    new[f"layers.{layer}.weight"] = (weight.bfloat16().float() * (1 + 0.02 * step)).bfloat16()
    changed += int((old[f"layers.{layer}.weight"] != new[f"layers.{layer}.weight"]).sum())
    size += weight.numel()
save_file(old, "base.safetensors", {"format": "pt"})
save_file(new, "tuned.safetensors", {"format": "pt"})
open("changed.txt", "w").write(str(changed / size))
"""
PACK = """
import os, zstandard
with open("tuned.safetensors", "rb") as file, open("tuned.zst", "wb") as packed:
    zstandard.ZstdCompressor(level=1, threads=2).copy_stream(file, packed)
os.sync()
"""
ZIPNN = """
import os
from zipnn import ZipNN
with open("base.safetensors", "rb") as old, open("tuned.safetensors", "rb") as new, open("tuned.znn", "wb") as packed:
    z = ZipNN(bytearray_dtype="bfloat16", is_streaming=True, delta_compressed_type="byte", threads=2)
    packed.write(z.compress(new.read(), delta_second_data=old.read()))
os.sync()
"""


def patching(folder: str, number: int, *, layers: int = 32) -> Iterator[Row]:
    """A patch is small, and made and applied faster than most networks carry a model."""
    size = layers * 8192 * 4096 * 2
    run(python(MAKE.replace("LAYERS", str(layers))), folder)
    with open(os.path.join(folder, "changed.txt"), encoding="utf-8") as file:
        part = float(file.read())

    def clean() -> None:
        for name in ("d.ckptpatch", "again.safetensors", "tuned.zst", "tuned.znn"):
            path = os.path.join(folder, name)
            if os.path.exists(path):
                sizes[name] = os.path.getsize(path)
            if os.path.exists(path) and name != "d.ckptpatch":
                os.remove(path)
        os.sync()

    sizes: dict[str, int] = {}
    commands = {
        "make": ckpt("patch", "make", "base.safetensors", "tuned.safetensors", "-o", "d.ckptpatch", "--force", "-q"),
        "apply": ckpt("patch", "apply", "base.safetensors", "d.ckptpatch", "-o", "again.safetensors", "-q"),
        "zstd": python(PACK),
        "pass": python("pass"),
    }
    if importlib.util.find_spec("zipnn") is not None:
        commands["zipnn"] = python(ZIPNN)
    seen = rounds(commands, folder, before=clean, number=number)
    clean()
    what = f"{size / 1e9:.1f} GB of bfloat16, {100 * part:.1f} % of which changed"
    made = sizes["d.ckptpatch"]
    yield Row(f"size of a patch of {what} / of the model", made / size, 0.06, seen=f"{made / 1e6:.1f} MB")
    others = (("tuned.zst", "zstd -1 of the model"), ("tuned.znn", "the delta of zipnn"))
    for name, other in others:
        if sizes.get(name):
            yield Row(f"size of that patch / of {other}", made / sizes[name], 1, seen=f"{sizes[name] / 1e6:.1f} MB")
    for verb in ("make", "apply"):
        rate = seen[verb].time / (size / 300e6)
        speed = f"{seen[verb].time:.2f} s: {size / seen[verb].time / 1e6:.0f} MB/s"
        yield Row(f"patch {verb} / at 300 MB/s", rate, 1, seen=speed)
        peak = (seen[verb].peak - seen["pass"].peak) / MB
        yield Row(f"peak memory of patch {verb}, over python -c pass", peak, 128, unit="MB")
    for name in ("base.safetensors", "tuned.safetensors", "d.ckptpatch"):
        os.remove(os.path.join(folder, name))
