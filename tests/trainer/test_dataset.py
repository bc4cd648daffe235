"""``classify`` on a dataset of torch that a function of the user's own returns."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from ckptsurgeon.trainer.checks import suite as checking
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.data.source import BatchStream
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.system.random_state import random_state, seed_all

Run = Callable[..., Any]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(x.flatten(1))
"""

DATA = """
import random
import numpy as np
import torch

class Squares(torch.utils.data.Dataset):
    def __init__(self, seed, names=False):
        self.draw, self.names = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(seed)), names

    def __len__(self):
        return len(self.draw)

    def __getitem__(self, place):
        x = self.draw[place].clone()
        x[place % 3] += 3
        return x, ("red", "green", "blue")[place % 3] if self.names else place % 3

def train_set():
    return Squares(0)

def dev_set():
    return Squares(1, names=True)

def some(seed, names, number=40):
    return torch.utils.data.Subset(Squares(seed, names), range(number))

class Scaled(torch.utils.data.Dataset):
    def __init__(self, inner, by):
        self.inner, self.by = inner, by

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, place):
        x, label = self.inner[place]
        return self.by * x, label

def arrays():
    return [(np.ones((3, 4), "float32"), torch.tensor(2)), (np.zeros((3, 4), "float32"), np.int64(0))]

def wrong_label():
    return [(torch.zeros(3, 4), 3)]

def wrong_name():
    return [(torch.zeros(3, 4), "rde")]

def no_pair():
    return [torch.zeros(3, 4)]

def stream():
    return (one for one in Squares(0))

def nothing():
    return []

def broken():
    return open("nowhere")

def late():
    class Late(Squares):
        def __getitem__(self, place):
            raise KeyError("lost")
    return Late(0)

def drawn():
    class Drawn(Squares):
        def __getitem__(self, place):
            x, label = super().__getitem__(place)
            if random.random() < 0.5:
                x = x.flip(1)
            return x + torch.randn(3, 4) + np.random.rand(), label
    return torch.utils.data.random_split(Drawn(0), [30, 10])[0]

Number = 3
"""


@pytest.fixture(autouse=True)
def files() -> None:
    Path("net.py").write_text(NET)
    Path("my_data.py").write_text(DATA)
    Path("classes.txt").write_text("red\ngreen\nblue\n")


def configuration(workers: int = 0, **data: Any) -> str:
    section = {
        "task": "classify", "steps": 40, "batch_size": 8, "lr": 0.05, "evaluate_every": 40, "save_every": 40,
        "data": {"tokens": "classes.txt", "workers": workers, **data},
    }  # fmt: skip
    Path("x.yaml").write_text(yaml.safe_dump({"model": {"_target_": "net.Net"}, "train": section}))
    return "x.yaml"


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_of_the_users_own_is_learned(ckpt: Run, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resume_is_exact", "reload_in_new_process"):  # the one is another process, the other trains again
        monkeypatch.setattr(checking, name, lambda *args, **options: Check("left out", "NOT RUN", ""))
    config = configuration(workers, train="my_data.py:train_set", dev="my_data.py:dev_set")
    done = ckpt("train", config, "--device", "cpu", "--set", f"data.workers={workers}")
    assert done.code == 0, done.out + done.err
    assert "note: train: 40 examples from my_data.py:train_set, your own code" in done.err
    assert "note: dev: 40 examples from my_data.py:dev_set, your own code" in done.err
    assert "best error 0" in " ".join(done.out.split())


def test_arrays_and_numbers_of_numpy_do_as_well(ckpt: Run) -> None:
    assert ckpt("train", configuration(train="my_data.py:arrays"), "--check-only").code == 0


SOME = {"_target_": "my_data.some", "seed": 0, "names": True, "number": 30}


@pytest.mark.long
def test_a_target_is_given_its_arguments(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a configuration in another folder, whose file is found there; one may be an argument of another."""
    for name in ("resume_is_exact", "reload_in_new_process"):
        monkeypatch.setattr(checking, name, lambda *args, **options: Check("left out", "NOT RUN", ""))
    scaled = {"_target_": "my_data.Scaled", "inner": SOME, "by": 0.5}
    configuration(train=scaled, dev={**SOME, "seed": 1, "number": 20})
    Path("conf").mkdir()
    for name in ("x.yaml", "net.py", "my_data.py", "classes.txt"):
        Path(name).rename(f"conf/{name}")
    done = ckpt("train", "conf/x.yaml", "--device", "cpu")
    assert done.code == 0, done.out + done.err
    assert "note: train: 30 examples from my_data.Scaled, your own code" in done.err
    assert "note: dev: 20 examples from my_data.some, your own code" in done.err
    used = yaml.safe_load(Path("run/config.yaml").read_text())["train"]["data"]
    assert used["train"] == [scaled]
    assert ckpt("train", "--resume", "--device", "cpu").code == 0
    Path("conf/x.yaml").write_text(Path("conf/x.yaml").read_text().replace("by: 0.5", "by: 2"))
    refused = ckpt("train", "--resume", "--device", "cpu")
    assert refused.code == 2
    assert "train.data.train was [{'_target_': 'my_data.Scaled'" in " ".join(refused.err.split())


def test_a_target_may_be_set_where_a_run_is_started(ckpt: Run) -> None:
    config = configuration(train="nothing.csv")
    done = ckpt("train", config, "--check-only", "--set", "data.train={_target_: my_data.some, seed: 0, names: false}")
    assert done.code == 0, done
    assert "train: 40 examples from my_data.some" in done.err


def batches(workers: int, seed: int, number: int = 9, begin: Any = (0, 0)) -> list[Tensor]:
    job = build_job(configuration(workers, train="my_data.py:drawn"), sets=[f"seed={seed}"], device="cpu")
    stream = BatchStream(job.train, seed, begin)
    return [next(stream).inputs for _ in range(number)]


@pytest.mark.long
def test_what_an_example_draws_follows_from_seed_epoch_and_place() -> None:
    """Any number of workers and a resumed run see the same, another seed and another epoch something else."""
    seed_all(5)
    before = random_state()
    first = batches(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(2, 0), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[6:], batches(1, 0, 3, (1, 2)), strict=True))
    rows = [row for batch in first for row in batch.flatten(1)]
    assert len(rows) > 60  # two epochs of 30, and none of the draws twice
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert not {tuple(row.tolist()) for row in rows} & {
        tuple(row.tolist()) for batch in batches(2, 1) for row in batch.flatten(1)
    }
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])


def test_workers_know_the_datasets_of_a_users_file_whatever_python_starts_processes_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python 3.14 starts them by a server, which has not read the file."""
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    assert multiprocessing.get_start_method() == "spawn"
    assert all(torch.equal(a, b) for a, b in zip(batches(0, 0, 2), batches(1, 0, 2), strict=True))


@pytest.mark.long
@pytest.mark.usefixtures("another_process")
def test_a_dataset_that_draws_passes_every_check(ckpt: Run) -> None:
    done = ckpt("train", configuration(train="my_data.py:drawn"), "--device", "cpu", "--steps", "8", "--json")
    checks = {check["name"]: check for check in json.loads(done.out)["checks"]}
    for name in ("resumed is uninterrupted", "saved, reopened, the same loss"):
        assert checks[name]["status"] == "PASS", checks[name]


@pytest.mark.parametrize(
    ("train", "why"),
    [
        (
            "no.py:train_set",
            "train.data.train: no.py:train_set: no.py does not exist. Write it as my_data.py:train_set.",
        ),
        ("my_data.py:train_ste", "my_data.py does not define train_ste. Did you mean train_set?"),
        ("my_data.py:Number", "my_data.py:Number is not a function that returns a dataset."),
        (
            "my_data.py:stream",
            "my_data.py:stream returns generator, not a map-style dataset. Return an object with __len__",
        ),
        ("my_data.py:nothing", "my_data.py:nothing returns an empty dataset."),
        ("my_data.py:broken", "my_data.py:broken fails: FileNotFoundError:"),
        ("my_data.py:late", "]: KeyError: 'lost'."),
        ("my_data.py:no_pair", "my_data.py:no_pair[0] is tensor("),
        (
            "my_data.py:wrong_label",
            "my_data.py:wrong_label[0]: the label 3 is not a class. A label must be an index from 0 to 2",
        ),
        ("my_data.py:wrong_name", "my_data.py:wrong_name[0]: the label 'rde' is not a class."),
        (
            {**SOME, "names": None, "nubmer": 3},
            "my_data.some fails: TypeError: some() got an unexpected keyword argument",
        ),
        ({"_target_": "my_data.smoe"}, "train.data.train: the module my_data has no smoe."),
        ({"_target_": "my_dtaa.some"}, "my_dtaa.some cannot be imported: there is no module my_dtaa."),
        ({"_target_": "my_data.py:some"}, "not of the form package.module.function. Write my_data.some."),
        (
            {"_target_": "my_data.Squares", "seed": "${x}"},
            "is an interpolation of OmegaConf, which ckpt does not resolve",
        ),
        ({**SOME, "_partial_": True}, "my_data.some returns partial, not a map-style dataset."),
        ({"target": "my_data.some"}, "not a string, a map with hf_dataset or _target_, or a list of these."),
        ([SOME, "x.csv"], "train.data.train has a function together with other entries."),
        (["my_data.py:train_set", "x.csv"], "train.data.train has a function together with other entries."),
    ],
)
def test_what_is_no_dataset_to_classify_is_said(ckpt: Run, train: Any, why: str) -> None:
    done = ckpt("train", configuration(train=train), "--device", "cpu")
    assert done.code == 2, done.err
    assert why in " ".join(done.err.split())
    assert "Traceback" not in done.err
