"""The loop against a bare one: the same model, the same batches, without log, checkpoint or anything counted."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Iterator

from .harness import Row, python

__all__ = ["loading", "saving", "training"]

TURNS, STEPS_OF_TURN = 12, 30
"""How often the two loops take turns in one process, and for how many steps each time."""

STEPPING = """
import copy, os, statistics, sys, tempfile, time
import torch
torch.set_num_threads(1)
torch.set_flush_denormal(True)  # gradients of what is learnt become denormal, and slow for one loop before the other
os.chdir(tempfile.mkdtemp())
sys.path.insert(0, {root!r})
from ckptsurgeon.cli.verbs.train import KEPT_BYTES
from ckptsurgeon.util.freed_memory import keep_freed_memory
from tests.trainer import toy
keep_freed_memory(KEPT_BYTES)  # as ckpt train does; both loops have it
TURNS, TURN = {turns}, {steps}
STEPS = (TURNS + 1) * TURN + 1
made = toy.loop(
    model={{"hidden": 256}}, folder="run", steps=STEPS, batch_size=64, evaluate_every=2 * STEPS, save_every=2 * STEPS
)
batches = [batch for epoch in range(STEPS // 4 + 1) for batch in made.job.train.read(0, epoch)]

class Ready:
    def size(self, epoch):
        return len(batches)

    def read(self, seed, epoch, start=0):
        return iter(batches[start:])

made.state.stream._source = Ready()
made.save = lambda: None
model, task = copy.deepcopy(made.model), made.job.task
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)

def ours(turn):
    made.run(until=(turn + 1) * TURN)

def bare(turn):
    for batch in batches[turn * TURN : (turn + 1) * TURN]:
        loss = task.loss(model, batch)
        (loss.total / loss.items).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

def timed(work, turn):
    began, spent = time.perf_counter(), time.process_time()
    work(turn)
    return time.perf_counter() - began, time.process_time() - spent

for turn in range(TURNS + 1):
    times = {{work: timed(work, turn) for work in ((ours, bare), (bare, ours))[turn % 2]}}
    if turn:  # the first turn is not measured: one loop counts operations, and torch warms up
        print(*times[ours], *times[bare], file=sys.stderr)
"""

LOADING = """
import os, sys, tempfile, time
import torch
torch.set_num_threads(1)
os.chdir(tempfile.mkdtemp())
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.speech.demo import demo_data
demo_data("speech", ["en"], n=640)
job = build_job("speech/en.yaml", sets=("steps=21", "warmup=0", "evaluate_every=99"), device="cpu")
loop = TrainingLoop(job, job.model()[0])
loop.run(until=1)
"""

LOADED = """
batches = list(job.train.read(0, 0))
began = time.perf_counter()
batches = list(job.train.read(0, 1))
"""

STEPPED = """
began = time.perf_counter()
loop.run(until=20)
"""

SAVING = """
import os, sys, tempfile, time
import torch
torch.set_num_threads(1)
os.chdir(tempfile.mkdtemp())
sys.path.insert(0, {root!r})
from tests.trainer import toy
made = toy.loop(model={{"hidden": 4980}}, folder="run", steps=33, batch_size=64, evaluate_every=99, save_every=8)
stalls, steps, save, step = [], [], made.save, made._step

def timed(times, work):
    def call(*args):
        began = time.perf_counter()
        made_of = work(*args)
        times.append(time.perf_counter() - began)
        return made_of
    return call

made.save, made._step = timed(stalls, save), timed(steps, step)
made.run(until=32)
size = sum(os.path.getsize(f"run/last/{{name}}") for name in os.listdir("run/last"))
print(size, sorted(stalls[1:])[1], sorted(steps[1:])[15], file=sys.stderr)  # medians; the first save takes its memory
"""

END = "print(time.perf_counter() - began, file=sys.stderr)\n"


def seconds(code: str, folder: str) -> float:
    """What a script says it took."""
    done = subprocess.run(python(code), cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stderr.strip().splitlines()[-1])


def loading(folder: str, number: int) -> Iterator[Row]:
    """Batches of 32 clips with their features kept, made by the process that trains, over steps that are given them."""
    loaded, stepped = [], []
    for _ in range(number):
        loaded.append(seconds(LOADING + LOADED + END, folder) / 20)
        stepped.append(seconds(LOADING + STEPPED + END, folder) / 19)
    a, b = statistics.median(loaded), statistics.median(stepped)
    yield Row("making a batch of 32 clips / a step with it", a / b, 0.25, seen=f"{1000 * a:.2f} ms / {1000 * b:.2f} ms")


def saving(folder: str, number: int) -> Iterator[Row]:
    """How long the loop waits for a save of 300 MB, over a step of that model."""
    found = []
    for _ in range(number):
        done = subprocess.run(
            python(SAVING.format(root=os.getcwd())), cwd=folder, capture_output=True, text=True, check=True
        )
        found.append([float(one) for one in done.stderr.strip().splitlines()[-1].split()])
    size, stall, step = (statistics.median(one) for one in zip(*found, strict=True))
    yield Row(
        f"what a save of {size / 1e6:.0f} MB stalls / a step", stall / step, 1.0,
        seen=f"{1000 * stall:.0f} ms / {1000 * step:.0f} ms",
    )  # fmt: skip


def training(folder: str, number: int) -> Iterator[Row]:
    """Steps of the loop, with its log, over bare steps: in time, and in seconds of processors, which load moves less.

    Both loops take turns in one process, and the median is taken of the ratios of all turns.
    """
    code = STEPPING.format(root=os.getcwd(), turns=TURNS, steps=STEPS_OF_TURN)
    turns: list[list[float]] = []
    for _ in range(number):
        done = subprocess.run(python(code), cwd=folder, capture_output=True, text=True, check=True)
        turns += [[float(one) for one in line.split()] for line in done.stderr.strip().splitlines()[-TURNS:]]
    for place, unit in enumerate(("", ", CPU")):
        ours, bare = ([turn[place + of] for turn in turns] for of in (0, 2))
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        a, b = (1000 * statistics.median(one) / STEPS_OF_TURN for one in (ours, bare))
        yield Row(
            f"a step of ckpt train / a bare step (0.9 of its speed){unit}", ratio, 1 / 0.9,
            seen=f"{a:.2f} ms / {b:.2f} ms",
        )  # fmt: skip
