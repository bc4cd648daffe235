"""The rows of merging: linear and TIES against mergekit, whose environment ``make oracle-mergekit`` makes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from .files import make_variants
from .harness import MB, Row, ckpt, python, rounds

__all__ = ["merging"]

MERGEKIT = ".oracle/mergekit/bin/mergekit-pytorch"

LINEAR = """\
merge_method: linear
models:
- {model: a.safetensors, parameters: {weight: 0.3}}
- {model: b.safetensors, parameters: {weight: 0.7}}
dtype: float32
"""
TIES = """\
merge_method: ties
base_model: base.safetensors
models:
- {model: a.safetensors, parameters: {weight: 1.0, density: 0.5}}
- {model: b.safetensors, parameters: {weight: 1.0, density: 0.5}}
dtype: float32
"""


def merging(folder: str, number: int, tool: str = MERGEKIT) -> Iterator[Row]:
    """Merging takes a fraction of mergekit's time and memory: files of 512 MB each, the same for both, in one run."""
    if not os.path.exists(tool):
        print(f"(no {tool}: make oracle-mergekit makes it; merges are not measured)")
        return
    make_variants(folder, 512_000_000)
    for name, text in (("linear.yml", LINEAR), ("ties.yml", TIES)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    def clean() -> None:
        for name in ("out", "theirs"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "out.safetensors"))
        os.sync()

    ours = ["merge", "a.safetensors", "b.safetensors", "-o", "out.safetensors", "-q", "-m"]
    theirs = [os.path.abspath(tool), "--quiet"]
    seen = rounds(
        {
            "linear": ckpt(*ours, "linear", "--weights", "0.3,0.7"),
            "their linear": [*theirs, "linear.yml", "theirs"],
            "ties": ckpt(*ours, "ties", "--base", "base.safetensors", "--weights", "1,1", "--param", "density=0.5"),
            "their ties": [*theirs, "ties.yml", "theirs"],
            "pass": python("pass"),
        },
        folder,
        before=clean,
        number=number,
    )
    base = seen["pass"].peak
    for method, files, bound in (
        ("linear", "linear merge of two 512 MB files", 0.33),
        ("ties", "TIES of two onto a base", 0.2),
    ):
        a, b = seen[method], seen[f"their {method}"]
        yield Row(f"{files} / mergekit 0.1.5", a.time / b.time, bound, seen=f"{a.time:.2f} s / {b.time:.2f} s")
        megabytes = f"{(a.peak - base) / MB:.0f} MB / {(b.peak - base) / MB:.0f} MB"
        yield Row(
            f"peak memory of that {method} / of mergekit's", (a.peak - base) / (b.peak - base), 0.2, seen=megabytes
        )
