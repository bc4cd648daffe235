"""Data that were damaged on the way, and what users' own tasks get wrong: one line each, and never a bug's exit."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from logging import LogRecord
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.config.joined_errors import joined

from . import toy
from .sounds import RATE, corpus
from .test_bad_input import MODEL, TRAIN

Run = Callable[..., Any]


@pytest.fixture
def sounds() -> None:
    Path("alphabet.txt").write_text("a\nb\nc\n")
    corpus("train.csv", ["a", "b", "c", "ab", "bc", "ca"])
    Path("x.yaml").write_text(yaml.safe_dump({"model": MODEL, "train": TRAIN}))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.trainer.run import run_job as running

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("cheap", "NOT RUN", "a test")])


def refused(ckpt: Run, *flags: str, config: str = "x.yaml", code: int = 2) -> str:
    done = ckpt("train", config, "--device", "cpu", *flags)
    assert done.code == code, done
    assert not os.path.exists("run")
    return " ".join(done.err.split()).rpartition("error: ")[2]


@pytest.mark.usefixtures("sounds")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_manifest_of_a_spreadsheet(encoding: str, ckpt: Run) -> None:
    Path("train.csv").write_bytes(Path("train.csv").read_text().encode(encoding))
    said = refused(ckpt)
    assert said.startswith("train.csv, line 1: the file ")
    assert "UTF-8" in said
    assert f"iconv -f {'UTF-32' if encoding == 'utf-32' else 'UTF-16'}" in said


@pytest.mark.costly
@pytest.mark.usefixtures("sounds")
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the manifest train.csv is empty. Known formats:"),
        (
            "wav_filename,transcript\r,speaker\r\na.wav,a\r,b\r\n",
            "train.csv, line 1: a carriage return (CR) is inside",
        ),
        (
            "wav_filename,transcript\ra.wav,a\r",
            "train.csv, line 1: a carriage return (CR) is inside the line. Remove each",
        ),
        ("\n\n", "train.csv is not a manifest in a known format: its first line is empty."),
        ("path;text\na;b\n", "its first line is 'path;text'. Its columns are separated by semicolons"),
    ],
)
def test_a_manifest_that_is_none(text: str, why: str, ckpt: Run) -> None:
    Path("train.csv").write_text(text, newline="")
    assert why in refused(ckpt)


@pytest.mark.costly
@pytest.mark.usefixtures("sounds")
@pytest.mark.parametrize("name", ["*.csv", "train.csv,dev.csv"])
def test_several_manifests_are_a_list(name: str, ckpt: Run) -> None:
    assert "Write several manifests as a list: [a.csv, b.csv]" in refused(ckpt, "--set", f"data.train='{name}'")


@pytest.mark.usefixtures("sounds")
def test_a_sound_that_is_a_folder_or_empty(ckpt: Run) -> None:
    os.mkdir("folder.wav")
    Path("empty.wav").touch()
    with open("train.csv", "a") as file:
        file.write("folder.wav,a\nempty.wav,b\n")
    said = refused(ckpt, code=3)
    assert said.startswith("train.csv, line 8: the sound folder.wav is a folder; 2 of 8 sounds cannot be used.")
    done = ckpt("train", "x.yaml", "--check-only", "--json")
    assert "train.csv, line 9: empty.wav is an empty file" in json.loads(done.err)["details"]


@pytest.mark.usefixtures("sounds")
def test_a_sound_that_was_cut_short(ckpt: Run) -> None:
    data = Path("train-1.wav").read_bytes()
    Path("train-1.wav").write_bytes(data[:-1000])
    said = refused(ckpt, code=3)
    assert said.startswith(
        "train.csv, line 3: train-1.wav is truncated: 1000 bytes of the sound that its header promises are missing."
    )
    piped = bytearray(data)
    place = piped.index(b"data") + 4
    piped[place : place + 4] = b"\xff\xff\xff\xff"  # as ffmpeg writes into a pipe
    Path("train-1.wav").write_bytes(piped)
    assert ckpt("train", "x.yaml", "--check-only", "--device", "cpu").code == 0


@pytest.mark.usefixtures("sounds")
def test_a_compressed_sound_that_was_cut_short(ckpt: Run) -> None:
    wave = np.random.default_rng(0).standard_normal(RATE) / 9
    soundfile.write("train-1.flac", wave, RATE)
    data = Path("train-1.flac").read_bytes()
    Path("train-1.flac").write_bytes(data[: len(data) // 2])
    Path("train.csv").write_text(Path("train.csv").read_text().replace("train-1.wav", "train-1.flac"))
    done = ckpt("train", "x.yaml", "--device", "cpu")
    assert done.code == 3, done
    assert "train.csv, line 3: train-1.flac" in " ".join(done.err.split())


def test_one_error_of_several_fields_is_said_once() -> None:
    files = [cs.ConfigError(f"data.{split}: no such file.") for split in ("train", "dev")]
    lines = [cs.ConfigError(f"{split}.csv, line 4: no text.") for split in ("train", "dev")]
    error = joined([*files, *lines])
    assert type(error) is cs.ConfigError
    assert error.message == (
        "data.train, data.dev: no such file. And: train.csv, line 4: no text. dev.csv, line 4: no text."
    )
    assert len(error.details) == 4


@pytest.mark.usefixtures("sounds")
def test_all_that_is_wrong_with_the_data_is_in_one_error(ckpt: Run) -> None:
    with open("train.csv", "a") as file:
        file.write("no.wav,a\n")
    rows = Path("train.csv").read_text().replace("-2.wav,c", "-2.wav,").replace("-3.wav,ab", "-3.wav,x")
    Path("train.csv").write_text(rows)
    corpus("dev.csv", ["a", "y"])
    done = ckpt("train", "x.yaml", "--check-only", "--json", "--set", "data.dev=dev.csv")
    told = json.loads(done.err)
    assert done.code == told["exit_code"] == 3
    assert told["message"].startswith("train.csv, line 8: the sound no.wav does not exist. And: ")
    assert told["details"] == [
        "train.csv, line 8: no.wav does not exist",
        "train.csv, line 4: the transcript is empty",
        "train.csv, line 5: 'x' (U+0078)",
        "dev.csv, line 3: 'y' (U+0079)",
    ]


@pytest.mark.long
@pytest.mark.usefixtures("sounds", "cheap")
def test_damaged_features_are_computed_anew(ckpt: Run, logged: list[LogRecord]) -> None:
    sets = ["data.cache=features"]
    whole = cs.train("x.yaml", run="whole", device="cpu", sets=sets)
    (path,) = Path("features").iterdir()
    data = bytearray(path.read_bytes())
    data[-100] ^= 64
    path.write_bytes(data)
    again = cs.train("x.yaml", run="again", device="cpu", sets=sets)
    assert [record.getMessage() for record in logged] == [
        f"train.csv, line 7: its features in {path} are damaged, and are computed again"
    ]
    assert again.last_loss == whole.last_loss
    assert Path("again/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
    logged.clear()
    cs.train("x.yaml", run="third", device="cpu", sets=sets)
    assert not logged


OWN = """
import sys
sys.path.insert(0, ".")
from toy_task import *

class NoFigures(Toy):
    def evaluate(self, model, batches):
        return None

class NoSum(Toy):
    def measure(self, model, batch):
        return [{"loss": 1.0} for _ in batch.labels]

    def figures(self, rows):
        return len(rows)

class NoNumbers(Toy):
    def evaluate(self, model, batches):
        return {"error": "low"}

class Bare(Toy):
    def __init__(self):
        pass

class NoItems(Toy):
    def loss(self, model, batch):
        found = super().loss(model, batch)
        return Loss(found.total, 0, found.parts)

class OnDevice(Toy):
    def loss(self, model, batch):
        found = super().loss(model, batch)
        return Loss(found.total, torch.tensor(found.items), found.parts)

class NoLoss(Toy):
    def loss(self, model, batch):
        return super().loss(model, batch).total

class Empty(Toy):
    def splits(self):
        return {**super().splits(), "train": Clips(0, 8, 0, self)}

class Fails(Toy):
    def splits(self):
        return {}[1]
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "NoFigures",
            "evaluate of the task NoFigures returns None, not a dict of numbers. Return a dict of numbers, such as {",
        ),
        ("NoSum", "the method figures of the task NoSum returns 64, not a dict of numbers."),
        ("NoNumbers", "evaluate of the task NoNumbers returns 'low' for 'error', not a number."),
        ("Bare", "the task own.py:Bare fails: TypeError: "),
        (
            "NoItems",
            "the method loss() of the task own.py:NoItems returns a Loss whose field items is 0, for a batch of 8 "
            "examples.",
        ),
        ("NoLoss", "loss() of the task own.py:NoLoss returns tensor("),
        ("Empty", "the split train has no batch 0 in epoch 0, but size(0) is 0."),
        ("Fails", "the task own.py:Fails fails in line 45: KeyError: 1."),
    ],
)
@pytest.mark.usefixtures("cheap")
def test_a_task_of_the_users_own_that_is_wrong(name: str, why: str, ckpt: Run) -> None:
    toy.write(task=f"own.py:{name}")
    Path("own.py").write_text(OWN)
    done = ckpt("train", "toy.yaml", "--device", "cpu")
    assert done.code == 2, done
    assert why in " ".join(done.err.split())
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("cheap")
def test_items_may_be_a_tensor(ckpt: Run) -> None:
    toy.write(task="own.py:OnDevice", steps=2, warmup=0)
    Path("own.py").write_text(OWN)
    done = ckpt("train", "toy.yaml", "--device", "cpu", "--check-only")
    assert done.code == 0, done


@pytest.mark.parametrize("seed", [2**63, -1])
def test_a_seed_that_no_generator_takes(seed: int, ckpt: Run) -> None:
    toy.write()
    assert f"train.seed is {seed}; it must be 0 or more, at most 9223372036854775807." in refused(
        ckpt, "--set", f"seed={seed}", config="toy.yaml"
    )


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_that_diverged_fails(ckpt: Run) -> None:
    toy.write(lr=30.0, warmup=0, clip=None, optimizer="sgd", schedule="constant", model={"dropout": 0})
    done = ckpt("train", "toy.yaml", "--device", "cpu")
    assert done.code == 1, done
    assert "FAIL loss fell" in " ".join(done.out.split())
    good = cs.train("toy.yaml", device="cpu", run="good", sets=["lr=0.01", "optimizer=adamw"])
    assert {check.name: check.status for check in good.checks}["loss fell"] == "PASS"


@pytest.mark.long
def test_controls_say_where_nothing_was_learned(init: str) -> None:
    """What stands on the plateau on which it began is no measure of the one that left it."""
    from ckptsurgeon.trainer.run.controls import knowledge_moved, run_controls

    made = toy.job(init, steps=2, warmup=0, lr=1e-7, model={"dropout": 0})
    found = run_controls(made, seeds=1)
    assert {"scratch", "permuted"} <= set(found.plateau)
    whole = dataclasses.replace(found, decided_on="unfrozen", seeds=3, verdict="KNOWLEDGE")
    assert knowledge_moved(whole).status == "WARN"
    assert (
        "the control runs from scratch and from permuted weights have learned nothing yet: train longer"
        in knowledge_moved(whole).says
    )
    frozen = dataclasses.replace(whole, decided_on="frozen")
    assert knowledge_moved(frozen).status == "PASS"
    assert knowledge_moved(frozen).says.endswith(
        "the control runs from scratch and from permuted weights have learned nothing yet"
    )
    assert "permuted" not in run_controls(toy.job(init, steps=60, model={"dropout": 0}), seeds=1).plateau


@pytest.mark.long
@pytest.mark.usefixtures("curves")
def test_the_picture_marks_the_best_and_a_single_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    from ckptsurgeon.trainer.run.records import curves_png

    drawn: list[Any] = []
    real = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *args, **how: (drawn.append((args, how)), real(self, *args, **how))[1]
    )
    steps = [{"step": n, "loss": 1.0, "grad_norm": 1.0, "lr": {"1": 0.1}} for n in range(1, 30)]
    rows = [*steps, {"step": 29, "dev": {"cer": 0.5}}]
    assert curves_png(rows, "cer", title="run: ctc, from $a$ b_1", best_step=29)
    assert [how["label"] for _, how in drawn if "label" in how] == [
        "each step", "mean of 15", "best: 0.5 at step 29", "each step", "mean of 15",
    ]  # fmt: skip
    (how,) = [how for args, how in drawn if args[0] == [29] and "label" not in how]
    assert (how["marker"], how["markersize"]) == ("o", 6)
