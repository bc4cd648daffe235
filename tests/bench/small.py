"""The rows of files of very many small tensors, as models of experts have: 200,000 tensors of four numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .harness import MB, Row, ckpt, python, rounds, run

__all__ = ["small"]

FILES = """
import numpy as np
from safetensors.numpy import save_file
names = [f"model.layers.{{i // 600}}.mlp.experts.{{i // 3 % 200}}.{{('down', 'gate', 'up')[i % 3]}}_proj.weight" for i in range({number})]
for seed, name in enumerate(("base", "a", "b")):
    draw = np.random.default_rng(seed)
    save_file({{key: draw.standard_normal((2, 2), "f4") for key in names}}, f"few-{{name}}.safetensors")
"""

REFERENCE = """
import os
from safetensors.{library} import load_file, save_file
save_file(load_file("few-a.safetensors"), "few-out.safetensors")
os.sync()
"""


def small(folder: str, number: int, tensors: int) -> Iterator[Row]:
    """Time and memory by the number of tensors: converting, and a TIES merge of two models onto their base."""

    def clean() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "few-out.safetensors"))
        os.sync()

    run(python(FILES.format(number=tensors)), folder)
    out = ("-o", "few-out.safetensors", "-q")
    ties = (
        "few-a.safetensors",
        "few-b.safetensors",
        "--base",
        "few-base.safetensors",
        "--method",
        "ties",
        "--weights",
        "1,1",
    )
    seen = rounds(
        {
            "torch": python(REFERENCE.format(library="torch")),
            "numpy": python(REFERENCE.format(library="numpy")),
            "convert": ckpt("convert", "few-a.safetensors", *out),
            "ties": ckpt("merge", *ties, *out),
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    what = f"{tensors:,} tensors of 16 bytes"
    for library, bound in (("torch", 1.0), ("numpy", 3.0)):
        ours, theirs = seen["convert"].time, seen[library].time
        said = f"{ours:.2f} s / {theirs:.2f} s"
        yield Row(f"convert {what} / safetensors.{library}'s load_file, save_file", ours / theirs, bound, seen=said)
    ties, theirs = seen["ties"].time, seen["torch"].time
    said = f"{ties:.2f} s / {theirs:.2f} s"
    yield Row(f"ties of two with {what} / safetensors.torch's load_file, save_file", ties / theirs, 3.2, seen=said)
    for name, memory in (("convert", 400), ("ties", 500)):
        yield Row(f"peak memory of that {name}", seen[name].peak / MB, memory, unit="MB")
