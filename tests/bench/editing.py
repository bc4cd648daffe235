"""The rows of the verbs that edit and compare: diff, rename, average."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from .files import make_parts
from .harness import MB, Row, ckpt, python, rounds

__all__ = ["editing"]

AVERAGE = """
import os, torch
total = None
for i in range(5):
    state = torch.load(f"part{i}.pth", weights_only=True)
    total = state if total is None else {key: total[key] + state[key] for key in state}
torch.save({key: value / 5 for key, value in total.items()}, "out.pth")
os.sync()
"""

DIFF = """
import torch
here, there = (torch.load("many.pth", weights_only=True, mmap=True) for _ in range(2))
assert here.keys() == there.keys()
print(sum(one.shape == there[key].shape and one.dtype == there[key].dtype for key, one in here.items()))
"""


def editing(folder: str, number: int) -> Iterator[Row]:
    """Comparing runs at the speed of cmp, renaming at that of cp, averaging without holding a model."""

    def clean() -> None:
        for name in ("out.pth", "out.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        os.sync()

    shutil.copyfile(f"{folder}/big.safetensors", f"{folder}/twin.safetensors")
    make_parts(folder)
    parts = [f"part{i}.pth" for i in range(5)]
    seen = rounds(
        {
            "cmp": ["cmp", "big.safetensors", "twin.safetensors"],
            "diff": ckpt("diff", "big.safetensors", "twin.safetensors", "--values", "-q"),
            "cp": ["sh", "-c", "cp big.safetensors out.pth && sync out.pth"],
            "rename": ckpt("rename", "big.pth", "--map", "encoder=body", "-o", "out.safetensors", "-q"),
            "loop": python(AVERAGE),
            "average": ckpt("average", *parts, "-o", "out.pth", "-q"),
            "pass": python("pass"),
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    base = seen["pass"].peak
    for ours, theirs, bound, what in (
        ("diff", "cmp", 1.0, "diff --values of two equal 2 GB files / cmp"),
        ("rename", "cp", 1.3, "rename 2 GB .pth to .safetensors / cp and sync"),
        ("average", "loop", 0.4, "average of five 512 MB files / a torch loop that sums them"),
    ):
        a, b = seen[ours].time, seen[theirs].time
        yield Row(what, a / b, bound, seen=f"{a:.2f} s / {b:.2f} s")
    yield Row("peak memory of that diff, over python -c pass", (seen["diff"].peak - base) / MB, 128, unit="MB")
    ratio = (seen["average"].peak - base) / (seen["loop"].peak - base)
    yield Row("peak memory of that average / of the loop", ratio, 0.1)
    many = rounds({"diff": ckpt("diff", "many.pth", "many.pth"), "loop": python(DIFF)}, folder, number=number)
    ours, theirs = many["diff"].time, many["loop"].time
    what = "diff of two headers of 92,000 tensors / torch.load(mmap=True) and a loop"
    yield Row(what, ours / theirs, 0.19, seen=f"{ours:.2f} s / {theirs:.2f} s")
