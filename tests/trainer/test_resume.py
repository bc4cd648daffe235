"""What is resumed is what was not interrupted, bit for bit; what is killed leaves the last good checkpoint."""

from __future__ import annotations

import errno
import json
import math
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.checks.training import frozen_unchanged
from ckptsurgeon.trainer.evaluation import Evaluation
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.log import read_log
from ckptsurgeon.trainer.run.records import lineage_of
from ckptsurgeon.trainer.run.resuming import check_unchanged
from ckptsurgeon.trainer.state.model_tensors import state_tensors
from ckptsurgeon.trainer.system.random_state import random_state, seed_all

from . import toy

EVERYTHING: dict[str, Any] = {
    "ema": 0.9, "accumulate": 3, "freeze": {"body.second": 5}, "lr_scale": {"head": 2}, "schedule": "linear",
}  # fmt: skip
DRAWS: dict[str, Any] = {"model": {"_target_": "toy_drawing.Net"}}
"""A model that draws from Python's and numpy's generators and has buffers that no state dict has."""


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("at", "settings"),
    [
        (1, {}),
        (6, {}),
        (4, EVERYTHING),
        (5, EVERYTHING),
        (11, EVERYTHING),
        (6, {"optimizer": "sgd"}),
        (5, DRAWS),
        (6, {**DRAWS, **EVERYTHING}),
    ],
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
    second.state.restore(*RunFolder("run").load())
    assert second.state.progress.step == at
    second.run()
    assert toy.equal(whole, second)
    skip = ("seconds",)
    one, other = asdict(whole.state.progress), asdict(second.state.progress)
    assert {k: v for k, v in one.items() if k not in skip} == {k: v for k, v in other.items() if k not in skip}


def test_the_test_of_equality_sees_a_difference() -> None:
    one, other = toy.loop(), toy.loop()
    one.run(until=3)
    other.run(until=2)
    assert not toy.equal(one, other)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("settings", [{}, DRAWS])
def test_looking_changes_nothing(settings: dict[str, Any]) -> None:
    """Evaluations, saves and an end draw nothing that the run would have drawn."""
    often = toy.loop(evaluate_every=1, save_every=1, folder="run", **settings)
    seldom = toy.loop(evaluate_every=12, **settings)
    often.run()
    seldom.run()
    assert toy.equal(often, seldom)


@pytest.mark.long
def test_the_log_of_a_resumed_run_has_each_step_once() -> None:
    first = toy.loop(folder="run", save_every=4)
    first.run(until=4)
    first.folder = None  # what comes now is never saved, as if the run were killed at step 6
    log = Path("run/log.jsonl").read_text()
    Path("run/log.jsonl").write_text(log + '{"step": 5, "loss": 1}\n{"step": 6, "lo')
    second = toy.loop(folder="run")
    second.state.restore(*RunFolder("run").load())
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
    tied = toy.TrainingLoop(loop.job, loop.model, folder=loop.folder)
    tied.run(until=2)
    found = load_file("run/last/model.safetensors")
    assert torch.equal(found["other.weight"], found["head.weight"])
    loop.model.load_state_dict(found, strict=True)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "symlink", "replace", "rename"])
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
            loop.run(until=6)
    assert folder.last_step() == 5
    assert Path("run/last/model.safetensors").read_bytes() == before
    assert [name for place in ("run", "run/steps") for name in os.listdir(place) if "ckpt-tmp" in name] == []
    folder.load()


def test_a_disk_that_fills_up_in_the_middle_of_the_state_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a write that failed torch makes another error, as it ends its file."""
    loop = toy.loop(folder="run", evaluate_every=100)
    loop.run(until=5)
    real = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if offset and os.readlink(f"/proc/self/fd/{fd}").endswith("/state.pth"):
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data, offset)

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        with pytest.raises(cs.OutputError, match="no space left"):
            loop.run(until=6)
    assert RunFolder("run").last_step() == 5


@pytest.mark.costly
@pytest.mark.parametrize("lost", ["torch", "python", "numpy"])
def test_each_random_state_that_is_lost_is_seen(lost: str) -> None:
    whole, first = toy.loop(**DRAWS), toy.loop(folder="run", **DRAWS)
    whole.run()
    first.run(until=5)
    second = toy.loop(**DRAWS)
    tensors, state = RunFolder("run").load()
    seed_all(99)
    other = random_state()
    second.state.restore(tensors, {**state, "random": [{**state["random"][0], lost: other[lost]}]})
    second.run()
    assert not toy.equal(whole, second)


def spoilt(key: str, at: int, *, resumed_at: int, **settings: Any) -> Check:
    """The check of what is frozen, of a run whose tensor is changed after some steps and which is then resumed."""
    first = toy.loop(folder="run", **settings)
    first.run(until=at)
    with torch.no_grad():
        state_tensors(first.model)[key].add_(1)
    first.run(until=resumed_at)
    second = toy.loop(folder="run", **settings)
    second.state.restore(*RunFolder("run").load())
    second.run()
    return frozen_unchanged(second.state)


@pytest.mark.long
def test_a_frozen_tensor_that_moved_before_a_resume_is_seen_after_it() -> None:
    found = spoilt("body.second.weight", 2, resumed_at=4, freeze=["body.second"])
    assert (found.status, found.says) == ("FAIL", "1 tensor of 2 changed: body.second.weight")


@pytest.mark.long
def test_a_tensor_that_moved_before_it_thawed_is_seen_after_a_resume() -> None:
    found = spoilt("body.second.weight", 2, resumed_at=8, freeze={"body.second": 5})
    assert (found.status, found.says) == ("FAIL", "1 tensor of 2 changed: body.second.weight")


@pytest.mark.long
def test_a_frozen_tensor_that_did_not_move_is_no_other_after_a_resume() -> None:
    first = toy.loop(folder="run", save_every=4, freeze=["body.second"])
    first.run(until=4)
    second = toy.loop(folder="run", freeze=["body.second"])
    second.state.restore(*RunFolder("run").load())
    second.run()
    assert frozen_unchanged(second.state).status == "PASS"
    assert second.state.freezing.digests_before == first.state.freezing.digests_before


# Early stopping.


def test_a_run_that_ended_for_want_of_patience_is_saved_and_ends_there_when_resumed() -> None:
    settings: dict[str, Any] = {"steps": 40, "evaluate_every": 2, "save_every": 100, "patience": 3, "lr": 1e-9}
    first = toy.loop(folder="run", **settings)
    assert first.run() == "patience"
    ended = first.state.progress.step
    assert RunFolder("run").last_step() == ended < 40
    second = toy.loop(folder="run", **settings)
    second.state.restore(*RunFolder("run").load())
    assert (second.state.progress.waited, second.run()) == (3, "patience")
    assert second.state.progress.step == ended
    assert len(read_log("run/log.jsonl")) == ended + ended // 2


@pytest.mark.parametrize(
    ("figures", "waited", "best"),
    [
        ([0.5, 0.6, 0.4, 0.5], [0, 1, 0, 1], 0.4),
        ([0.5, math.nan, 0.5, 0.4], [0, 1, 2, 0], 0.4),
        ([math.nan, 0.5], [1, 0], 0.5),
        ([math.nan, math.nan], [1, 2], None),
    ],
)
def test_evaluations_without_a_better_figure_are_counted_from_the_last_better_one(
    figures: list[float], waited: list[int], best: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = toy.loop(steps=2 * len(figures), evaluate_every=2, patience=3, folder="run")
    given = iter(figures)
    monkeypatch.setattr(
        "ckptsurgeon.trainer.loop.evaluate_shared", lambda *args, **options: Evaluation({"error": next(given)})
    )
    seen = []
    for step in range(2, 2 * len(figures) + 1, 2):
        assert loop.run(until=step) == ("done" if step == 2 * len(figures) else "")
        seen.append(loop.state.progress.waited)
    assert (seen, loop.state.progress.best) == (waited, best)
    assert os.path.exists("run/best.safetensors") == (best is not None)


# A run that goes on for more steps than it was to have.


def lineage() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("run/lineage.json").read_text())
    return found


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_run_that_is_done_goes_on_with_more_steps(schedule: str, ckpt: Any) -> None:
    toy.write()
    same = ["toy.yaml", "--device", "cpu", "--set", f"schedule={schedule}"]
    assert ckpt("train", *same, "--steps", "6").code == 0
    done = ckpt("train", "--resume", "--steps", "12", "--device", "cpu")
    assert done.code == 0, done
    said = " ".join((done.out + done.err).split())
    assert "steps was 6, is 12" in said
    rate = "from step 7 on, the learning rate follows the linear schedule over 12 steps: 0.00"
    assert (rate in said) == (schedule == "linear")
    assert lineage()["prolonged"] == [{"at": 6, "from": 6, "to": 12}]
    assert [row["step"] for row in read_log("run/log.jsonl") if "loss" in row] == list(range(1, 13))
    again = ckpt("train", "--resume", "--device", "cpu")  # without --steps: those of the last time
    assert "this run has already done all 12 steps" in " ".join((again.out + again.err).split())
    assert "was edited" not in again.err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["train"]["steps"] == 12
    assert len(lineage()["prolonged"]) == 1
    assert ckpt("train", *same, "--steps", "12", "--run", "whole").code == 0
    ours, whole = (load_file(f"{run}/last/model.safetensors") for run in ("run", "whole"))
    assert all(ours[key].equal(value) for key, value in whole.items()) == (schedule == "constant")


@pytest.mark.long
def test_the_note_on_other_steps_has_the_rates_of_the_first_step_that_is_left() -> None:
    whole = toy.loop(folder="whole", schedule="cosine", steps=12)
    whole.run()
    toy.loop(folder="run", schedule="cosine", steps=12).run(until=10)
    began = lineage_of(whole.job, None, RunFolder("run"), ())
    fewer, more = ([toy.job(schedule="cosine", steps=steps), began, RunFolder("run")] for steps in (10, 16))
    assert check_unchanged(*fewer) == ["steps was 12, is 10"]  # no step is left
    (note,) = check_unchanged(*more)
    resumed = toy.loop(folder="run", schedule="cosine", steps=16)
    resumed.state.restore(*RunFolder("run").load())
    resumed.run(until=11)
    logs = (read_log(f"{folder}/log.jsonl") for folder in ("whole", "run"))
    was, now = (
        f"{next(iter(row['lr'].values())):.3g}" for log in logs for row in log if row["step"] == 11 and "lr" in row
    )
    assert "from step 11 on, the learning rate follows the cosine schedule over 16 steps" in note
    assert note.endswith(f", {now} instead of {was}")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_configuration_may_be_edited_again_and_again(ckpt: Any) -> None:
    toy.write()
    text = Path("toy.yaml").read_text()
    document = yaml.safe_load(text)
    for steps in (6, 12, 18):
        document["train"]["steps"] = steps
        Path("toy.yaml").write_text(yaml.safe_dump(document))
        done = ckpt("train", "toy.yaml", "--device", "cpu", *(["--resume"] if steps > 6 else []))
        assert done.code == 0, done
        assert f"{steps}/{steps} steps" in " ".join((done.out + done.err).split())
    assert lineage()["sets"] == []
    assert [change["to"] for change in lineage()["prolonged"]] == [12, 18]


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_that_lost_patience_would_end_at_once_again(ckpt: Any) -> None:
    toy.write()
    impatient = ["--set", "patience=2", "--set", "evaluate_every=1", "--set", "lr=1e-9"]
    ckpt("train", "toy.yaml", "--device", "cpu", *impatient, "--steps", "20")
    before = Path("run/lineage.json").read_bytes()
    done = ckpt("train", "--resume", "--steps", "40", "--device", "cpu")
    assert done.code == 2
    assert "since the metric did not improve in 2 evaluations in a row (train.patience)" in " ".join(done.err.split())
    assert Path("run/lineage.json").read_bytes() == before


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_cannot_have_fewer_steps_than_it_has_done(ckpt: Any) -> None:
    toy.write()
    assert ckpt("train", "toy.yaml", "--device", "cpu", "--steps", "6").code == 0
    before = Path("run/lineage.json").read_bytes()
    done = ckpt("train", "--resume", "--steps", "4", "--device", "cpu")
    assert done.code == 2
    assert "has already done 6 steps, more than train.steps, 4" in done.err
    assert Path("run/lineage.json").read_bytes() == before
