"""The loop against a bare one: the same model, the same batches, without log, checkpoint or anything counted."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator

from .harness import Row, python

__all__ = ["training"]

SETUP = """
import os, sys, tempfile, time
import torch
torch.set_num_threads(1)
os.chdir(tempfile.mkdtemp())
sys.path.insert(0, {root!r})
from tests.trainer import toy
STEPS = {steps}
made = toy.loop(
    model={{"hidden": 256}}, folder="run", steps=STEPS, batch_size=64, evaluate_every=2 * STEPS, save_every=2 * STEPS
)
batches = [batch for epoch in range(STEPS // 4) for batch in made.job.work.train.read(0, epoch)]

class Ready:
    def size(self, epoch):
        return len(batches)

    def read(self, seed, epoch, start=0):
        return iter(batches[start:])
"""

OURS = """
made.stream._source = Ready()
made.save = lambda: None
began = time.perf_counter()
made.run(until=STEPS - 1)
"""

BARE = """
model, task = made.model, made.job.work.task
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
began = time.perf_counter()
for batch in batches[: STEPS - 1]:
    loss = task.loss(model, batch)
    (loss.total / loss.items).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
"""

END = "print(time.perf_counter() - began, file=sys.stderr)\n"


def seconds(code: str, folder: str) -> float:
    """What a script says it took."""
    done = subprocess.run(python(code), cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stderr.strip().splitlines()[-1])


def training(folder: str, number: int, *, steps: int = 150) -> Iterator[Row]:
    """Steps of the loop, with its log, over bare steps."""
    setup = SETUP.format(root=os.getcwd(), steps=steps)
    ours, bare = [], []
    for _ in range(number):
        ours.append(seconds(setup + OURS + END, folder))
        bare.append(seconds(setup + BARE + END, folder))
    a, b = statistics.median(ours), statistics.median(bare)
    yield Row(
        "a step of ckpt train / a bare step (0.9 of its speed)", a / b, 1 / 0.9,
        seen=f"{1000 * a / steps:.2f} ms / {1000 * b / steps:.2f} ms",
    )  # fmt: skip
