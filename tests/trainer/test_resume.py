"""What is resumed is what was not interrupted, bit for bit; what is killed leaves the last good checkpoint."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.log import read_log
from ckptsurgeon.trainer.run_folder import RunFolder

from . import toy

EVERYTHING: dict[str, Any] = {
    "ema": 0.9, "accumulate": 3, "freeze": {"body.second": 5}, "lr_scale": {"head": 2}, "schedule": "linear",
}  # fmt: skip


@pytest.mark.parametrize(
    ("at", "settings"),
    [(1, {}), (6, {}), (4, EVERYTHING), (5, EVERYTHING), (11, EVERYTHING), (6, {"optimizer": "sgd"})],
)
def test_a_run_in_two_parts_is_a_run_in_one(at: int, settings: dict[str, Any]) -> None:
    """Dropout is on, an epoch has four batches, and evaluations are between."""
    whole = toy.loop(**settings)
    whole.run()
    first = toy.loop(folder="run", save_every=100, **settings)
    first.run(until=at)
    random.seed(99)
    numpy.random.seed(99)
    torch.manual_seed(99)
    second = toy.loop(folder="run", save_every=100, **settings)
    second.restore(*RunFolder("run").load())
    assert second.standing.step == at
    second.run()
    assert toy.equal(whole, second)
    skip = ("seconds",)
    one, other = whole.standing.to_json(), second.standing.to_json()
    assert {k: v for k, v in one.items() if k not in skip} == {k: v for k, v in other.items() if k not in skip}


def test_the_test_of_equality_sees_a_difference() -> None:
    one, other = toy.loop(), toy.loop()
    one.run(until=3)
    other.run(until=2)
    assert not toy.equal(one, other)


def test_looking_changes_nothing() -> None:
    """Evaluations, saves and an end draw nothing that the run would have drawn."""
    often, seldom = toy.loop(evaluate_every=1, save_every=1, folder="run"), toy.loop(evaluate_every=12)
    often.run()
    seldom.run()
    assert toy.equal(often, seldom)


def test_the_log_of_a_resumed_run_has_each_step_once() -> None:
    first = toy.loop(folder="run", save_every=4)
    first.run(until=4)
    first.folder = None  # what comes now is never saved, as if the run were killed at step 6
    log = Path("run/log.jsonl").read_text()
    Path("run/log.jsonl").write_text(log + '{"step": 5, "loss": 1}\n{"step": 6, "lo')
    second = toy.loop(folder="run")
    second.restore(*RunFolder("run").load())
    second.run()
    rows = read_log("run/log.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "dev" in row] == [4, 8, 12]


def test_keep_keeps_the_newest_and_last_leads_to_it() -> None:
    toy.loop(folder="run", save_every=2, keep=3).run()
    assert sorted(map(int, os.listdir("run/steps"))) == [8, 10, 12]
    assert os.readlink("run/last") == "steps/12"
    torch.load("run/last/state.pth", weights_only=True)
    assert cs.open_checkpoint("run/last/model.safetensors")["head.weight"].shape == (4, 16)


def test_what_is_saved_loads_strictly_with_every_tie() -> None:
    loop = toy.loop(folder="run")
    loop.model.other = loop.model.head  # type: ignore[assignment]
    tied = toy.Loop(loop.job, loop.model, folder=loop.folder)
    tied.run(until=2)
    found = load_file("run/last/model.safetensors")
    assert torch.equal(found["other.weight"], found["head.weight"])
    loop.model.load_state_dict(found, strict=True)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "rename", "symlink", "replace"])
def test_a_save_that_fails_keeps_the_old_checkpoint(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, in whichever call it shows."""
    loop = toy.loop(folder="run", evaluate_every=100)
    loop.run(until=5)
    folder, before = RunFolder("run"), Path("run/last/model.safetensors").read_bytes()
    real = getattr(os, call)

    def full(*args: Any, **options: Any) -> Any:
        if call in ("pwrite", "fsync") or any(".ckpt-tmp" in str(arg) for arg in args):
            raise OSError(errno.ENOSPC, "no space")
        return real(*args, **options)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        with pytest.raises(cs.OutputError, match="no space left"):
            folder.save(6, b"another", loop.state(), keep=2)
    assert folder.last_step() == 5
    assert Path("run/last/model.safetensors").read_bytes() == before
    assert [name for place in ("run", "run/steps") for name in os.listdir(place) if "ckpt-tmp" in name] == []
    folder.load()
