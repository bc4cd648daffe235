"""A model, a task and their configuration, small enough to be trained in a fraction of a second.

Clips are frames around the prototype of their class; the answer is the class. The files are written to the working
directory, as a user would have them, so that other processes can use them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.saved import all_tensors
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.trainer.job.job import Job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.state.model_tensors import digests

STARTED = {"config": "toy.yaml", "init": "toy.init.safetensors"}
"""What a run starts from; its configuration names code, so that it has to be named itself."""
START = ("toy.yaml", "--init", "toy.init.safetensors")

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    """(batch, time, 8) to (batch, classes)."""

    def __init__(self, classes=4, hidden=16, dropout=0.1, groups=False, leaky=False, norm=True):
        super().__init__()
        self.body = nn.ModuleDict({
            "first": nn.Linear(8, hidden), "act": nn.ReLU(), "norm": nn.BatchNorm1d(hidden) if norm else nn.Identity(),
            "second": nn.Linear(hidden, hidden), "drop": nn.Dropout(dropout),
        })
        self.groups = nn.GroupNorm(2, hidden) if groups else None
        self.leaky = leaky
        self.head = nn.Linear(hidden, classes)

    def forward(self, x, lengths):
        x = self.body["act"](self.body["first"](x))
        x = self.body["norm"](x.transpose(1, 2)).transpose(1, 2)
        if self.groups is not None:
            x = self.groups(x.transpose(1, 2)).transpose(1, 2)
        x = self.body["drop"](torch.relu(self.body["second"](x)))
        if self.leaky:
            x = x - x.mean((0, 1), keepdim=True)
        inside = torch.arange(x.shape[1])[None] < lengths[:, None]
        return self.head((x * inside[..., None]).sum(1) / lengths[:, None])
'''

DRAWING = '''
import random
import numpy
import torch
from toy_net import Net as Plain

class Net(Plain):
    """Draws from Python's and numpy's generators too, and counts what it was given where no checkpoint looks."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.body.register_buffer("noise", torch.ones(1), persistent=False)
        self.body.calls, self.body.share = 0, 0.5

    def forward(self, x, lengths):
        if self.training:
            self.seen += len(x)
            self.body.calls, self.body.share = self.body.calls + 1, self.body.share * 0.9
            self.body.noise = torch.full((1 + int(self.seen) % 3,), random.random() + numpy.random.random())
        gain = 1 + 0.1 * self.body.noise.sum() + 0.001 * self.seen + 0.01 * self.body.calls + self.body.share
        return super().forward(x * gain, lengths)
'''

TASK = '''
import math
import os
import torch
from torch.nn import functional
from ckptsurgeon.trainer.tasks._task import Batch, Loss

CLASSES, FRAMES = 4, 12

class Clips:
    """Batches drawn from a generator of their own."""

    def __init__(self, number, batch_size, split, task):
        self.number, self.batch_size, self.split, self.task = number, batch_size, split, task

    def size(self, epoch):
        return self.number

    def read(self, seed, epoch, start=0):
        for index in range(start, self.number):
            yield self.batch(seed, epoch, index)

    def batch(self, seed, epoch, index):
        draw = torch.Generator().manual_seed(((seed * 1000 + epoch) * 1000 + index) * 2 + self.split)
        known = torch.Generator().manual_seed(7)
        prototypes = torch.randn(CLASSES, 8, generator=known)
        labels = torch.randint(CLASSES, (self.batch_size, 1), generator=draw)
        lengths = torch.randint(3, FRAMES + 1, (self.batch_size,), generator=draw)
        x = prototypes[labels[:, 0]][:, None] + NOISE * torch.randn(self.batch_size, FRAMES, 8, generator=draw)
        x = x * (torch.arange(FRAMES)[None] < lengths[:, None])[..., None]
        return Batch(x[:, : int(lengths.max())], lengths, labels, torch.ones_like(lengths),
                     float(lengths.sum()) / 100, tuple(f"{index}:{i}" for i in range(self.batch_size)))

NOISE = 0.5

class Toy:
    metric = "error"

    def __init__(self, settings, tokens):
        self.settings, self.calls = settings, 0

    def splits(self):
        return {"train": Clips(4, self.settings.batch_size, 0, self), "dev": Clips(2, 32, 1, self)}

    def loss(self, model, batch):
        logits = model(batch.inputs, batch.lengths)
        total = functional.cross_entropy(logits, batch.labels[:, 0], reduction="sum")
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls in NANS:
                total = total * math.nan
        return Loss(total, len(batch.labels), {"ce": total})

    def uniform_loss(self, model, batch):
        return math.log(CLASSES)

    def evaluate(self, model, batches):
        wrong = items = loss = 0
        for batch in batches:
            logits = model(batch.inputs, batch.lengths)
            loss += float(functional.cross_entropy(logits, batch.labels[:, 0], reduction="sum"))
            wrong += int((logits.argmax(1) != batch.labels[:, 0]).sum())
            items += len(batch.labels)
        return {"loss": loss / items, "error": wrong / items}

NANS = range(int(os.environ.get("TOY_NAN_FROM", 10**9)), int(os.environ.get("TOY_NAN_TO", 10**9)))

class WithTest(Toy):
    def splits(self):
        return {**super().splits(), "test": Clips(3, 20, 1, self)}

    def evaluate(self, model, batches):
        found = super().evaluate(model, batches)
        with open("evaluated.txt", "a") as file:
            print(found, file=file)
        return found

class TestAlone(WithTest):
    def splits(self):
        return {name: split for name, split in super().splits().items() if name != "dev"}

class NoDev(Toy):
    def splits(self):
        return {"train": super().splits()["train"]}

class NoFigure(Toy):
    """Its metric is never a number: no model is the best."""

    def evaluate(self, model, batches):
        return {**super().evaluate(model, batches), "error": math.nan}

class Prepared(Toy):
    def prepare(self, progress):
        return ["train: 32 clips; 32 computed"]

    def notes(self):
        return ["train: 32 clips"]
'''

DEFAULT: dict[str, Any] = {
    "task": "toy_task.py:Toy", "steps": 12, "batch_size": 8, "lr": 0.01, "warmup": 2, "evaluate_every": 4,
    "save_every": 4, "keep": 2,
}  # fmt: skip


def write(name: str = "toy.yaml", model: dict[str, Any] | None = None, **settings: Any) -> str:
    """Write the toy's files; returns the configuration's path."""
    Path("toy_net.py").write_text(NET)
    Path("toy_task.py").write_text(TASK)
    Path("toy_drawing.py").write_text(DRAWING)
    document = {"model": {"_target_": "toy_net.Net", **(model or {})}, "train": {**DEFAULT, **settings}}
    Path(name).write_text(yaml.safe_dump(document))
    return name


def job(init: str | None = None, model: dict[str, Any] | None = None, **settings: Any) -> Job:
    """A job of the toy, on the CPU."""
    return build_job(write(model=model, **settings), device="cpu", init=read_init(init) if init else None)


def loop(
    init: str | None = None,
    *,
    folder: str | None = None,
    frozen: list[str] | None = None,
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> TrainingLoop:
    """A loop of the toy, about to begin; with a folder, one that can be saved."""
    made = job(init, model, **settings)
    run = None
    if folder is not None:
        run = RunFolder(folder)
        run.create()
    return TrainingLoop(made, made.model()[0], folder=run, frozen=frozen or ())


def make_init(*exclude: str, source: str = "src.pth", output: str = "toy.init.safetensors", seed: int = 0) -> str:
    """Transplant what a trained toy knows, without some modules; returns the init's path."""
    plan = cs.transplant(source, "toy.yaml", exclude=list(exclude), seed=seed)
    cs.apply(plan, output)
    return output


def train_source(steps: int = 60) -> str:
    """Train a toy and keep its weights as src.pth; leaves toy.yaml as it is by default."""
    made = loop(steps=steps, evaluate_every=steps)
    made.run()
    torch.save(made.model.state_dict(), "src.pth")
    write()
    return "src.pth"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained toy's weights."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_source()
    return folder / "src.pth"


@pytest.fixture
def init(source: Path) -> str:
    """A toy.yaml, and an init made for it from what a toy has learned, but for its head."""
    write()
    return make_init("head", source=str(source), seed=5)


def equal(one: TrainingLoop, other: TrainingLoop) -> bool:
    """Whether two runs are the same, bit for bit."""
    return digests(all_tensors(one)) == digests(all_tensors(other))
