"""The row of a search: what a trial costs beside its merge and its evaluation, in seconds of processors.

Seconds of processors, since a trial takes less than a second, and other programs may run. What a search and a loop do
once (they start, plan, write the best model and verify it) is left out by the difference between more and fewer trials.
"""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Iterator

from .files import make_variants
from .harness import Row, ckpt, python, run

__all__ = ["searching"]

NBYTES = 256_000_000
FEW, MANY = 2, 10
"""The numbers of trials whose difference is measured."""
RECIPE = """\
merge_method: ties
base_model: base.safetensors
models:
- {{model: a.safetensors, parameters: {{weight: {weight}, density: 0.5}}}}
- {{model: b.safetensors, parameters: {{weight: 0.5, density: 0.5}}}}
"""
EVALUATE = """\
import sys, zlib
with open(sys.argv[1], "rb") as file:
    print("score:", zlib.crc32(file.read()) / 2**32)
"""
"""It stands for an evaluation: the score depends on every byte, and on nothing else."""
LOOP = """
import subprocess, sys
import ckptsurgeon as cs
for number in range({trials}):
    with open("loop.yaml", "w") as file:
        file.write({recipe!r}.format(weight=0.1 + number / 100))
    cs.apply(cs.merge("loop.yaml"), "loop.safetensors", force=True)
    subprocess.run([sys.executable, "-I", "-S", "evaluate.py", "loop.safetensors"], check=True, capture_output=True)
"""


def searching(folder: str, number: int) -> Iterator[Row]:
    """A trial costs its merge and its evaluation, and at most 5 % more."""
    make_variants(folder, NBYTES)
    for name, text in (("search.yaml", RECIPE.format(weight="{search: [0, 1]}")), ("evaluate.py", EVALUATE)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    judge = f"{shlex.quote(sys.executable)} -I -S evaluate.py {{model}}"
    seen: dict[str, list[float]] = {"search": [], "loop": []}
    for turn in range(number + 1):  # the first is a warm-up
        for name, took in seen.items():
            spent = [
                run(
                    _search(judge, trials, f"{turn}-{trials}")
                    if name == "search"
                    else python(LOOP.format(trials=trials, recipe=RECIPE)),
                    folder,
                )[2]
                for trials in (FEW, MANY)
            ]
            took += [(spent[1] - spent[0]) / (MANY - FEW)] if turn else []
    ours, theirs = (statistics.median(seen[name]) for name in ("search", "loop"))
    yield Row(
        "a trial of ckpt search / its merge and its evaluation, seconds of processors", ours / theirs, 1.05,
        seen=f"{ours:.3f} s / {theirs:.3f} s",
    )  # fmt: skip


def _search(judge: str, trials: int, study: str) -> list[str]:
    return ckpt(
        "search", "search.yaml", "--evaluate", judge, "--maximize", "--sampler", "sobol", "--trials", str(trials),
        "--study", f"study-{study}", "-o", "found.safetensors", "--force", "-q",
    )  # fmt: skip
