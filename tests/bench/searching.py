"""The row of a search: what a trial costs beside its merge and its evaluation, in seconds of processors.

After each trial of a search, the same process merges and evaluates a model as a script would, and both are measured. So
other programs on the machine slow down both. What a search and a script do once (they start, import, write the best
model and verify it) is not in either figure, nor is the first trial.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator

from .files import make_variants
from .harness import Row, python, run

__all__ = ["searching"]

NBYTES = 256_000_000
TRIALS = 4
"""The trials of a round, without the first of all."""
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
PAIRS = """
import json, resource, subprocess, sys
import ckptsurgeon as cs

judge, pairs, last, number = [sys.executable, "-I", "-S", "evaluate.py"], [], None, 0

def spent():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

def by_hand():
    with open("loop.yaml", "w") as file:
        file.write({recipe!r}.format(weight=(number % 20 + 1) / 20))
    cs.apply(cs.merge("loop.yaml"), "loop.safetensors", force=True)
    subprocess.run([*judge, "loop.safetensors"], check=True, capture_output=True)

def ended(trial):
    global last, number
    trial_end = spent()
    by_hand()
    hand_end = spent()
    if last is not None:
        pairs.append((trial_end - last, hand_end - trial_end))
    last, number = hand_end, number + 1

cs.search(
    "search.yaml", "found.safetensors", evaluate=" ".join([*judge, "{{model}}"]), maximize=True, sampler="sobol",
    trials={trials}, study="study", force=True, observe=ended,
)
with open("pairs.json", "w") as file:
    json.dump(pairs, file)
"""
"""It writes the seconds of processors of each trial after the first, and of the merge by hand that follows it."""


def searching(folder: str, number: int) -> Iterator[Row]:
    """A trial costs its merge and its evaluation, and at most 5 % more."""
    make_variants(folder, NBYTES)
    for name, text in (("search.yaml", RECIPE.format(weight="{search: [0, 1]}")), ("evaluate.py", EVALUATE)):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    run(python(PAIRS.format(recipe=RECIPE, trials=TRIALS * number + 1)), folder)
    with open(os.path.join(folder, "pairs.json"), encoding="utf-8") as file:
        pairs: list[tuple[float, float]] = json.load(file)
    ours, theirs = (statistics.median(one) for one in zip(*pairs, strict=True))
    yield Row(
        "a trial of ckpt search / its merge and its evaluation, seconds of processors",
        statistics.median(one / other for one, other in pairs),
        1.05,
        seen=f"{ours:.3f} s / {theirs:.3f} s, {len(pairs)} trials",
    )
