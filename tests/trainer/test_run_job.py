"""What a run that goes on takes from its folder, and what no end of a run can lose."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError
from ckptsurgeon.trainer.checks import suite as checking
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.run import run_job as running
from ckptsurgeon.trainer.run.records import lineage_of
from ckptsurgeon.trainer.run.report import read_report
from ckptsurgeon.trainer.run.resuming import FREE, check_unchanged

from . import toy
from .sounds import corpus
from .test_train import stop_at

Run = Callable[..., Any]
REOPENED, BEST = "saved, reopened, the same loss", "best, reopened, the same loss"


def by_name(found: cs.Trained) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def refused(**options: Any) -> str:
    with pytest.raises(cs.ConfigError) as caught:
        cs.train(resume=True, device="cpu", **options)
    return " ".join(str(caught.value).split())


# One batch.


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_one_batch_stays_one_batch_when_resumed() -> None:
    toy.write()
    whole = cs.train("toy.yaml", run="whole", device="cpu", overfit_one_batch=True)
    stop_at(5, config="toy.yaml", run="run", device="cpu", overfit_one_batch=True)
    found = cs.train(resume=True, device="cpu")
    assert (found.step, found.figures) == (12, whole.figures)
    assert Path("run/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_all_data_do_not_become_one_batch_when_resumed() -> None:
    toy.write()
    stop_at(5, config="toy.yaml", device="cpu")
    assert refused(run="run", overfit_one_batch=True).startswith("run was started without overfit_one_batch=True")
    assert cs.train(resume=True, device="cpu").step == 12


# Controls.


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_that_is_killed_in_its_controls_has_a_result_and_they_can_be_run_again(
    init: str, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cs.train(**toy.STARTED, run="whole", device="cpu", steps=4, controls=True, seeds=1)

    def killed(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "run_controls", killed)
        with pytest.raises(KeyboardInterrupt):
            cs.train(**toy.STARTED, device="cpu", steps=4, controls=True, seeds=1)
    left = read_report("run")
    assert (left.step, left.ended, left.controls) == (4, "unchecked", None)
    last = {check.name: (check.status, check.says) for check in left.checks if check.when == "after"}
    assert last == {
        "checks after the last step": ("NOT RUN", "not run yet; --resume runs them"),
        "controls": ("NOT RUN", "not run yet; --resume --controls runs them"),
    }
    said = " ".join(ckpt("train", "--report").out.split())
    assert "not run: checks after the last step, controls" in said
    assert "not done: the checks after the last step have not run; --resume runs them" in said
    found = cs.train(resume=True, device="cpu", controls=True, seeds=1)
    assert found.controls == whole.controls is not None
    assert found.ended == read_report("run").ended == "done"
    assert read_report("run").controls == whole.controls


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_controls_of_a_run_that_goes_on_need_the_init_that_it_was_started_from(init: str) -> None:
    stop_at(2, device="cpu", steps=4)
    shutil.move(init, "kept")
    assert refused(controls=True).startswith(
        "controls=True trains again from the initial weights of the run, but toy.init.safetensors is gone."
    )
    save_file({key: value + 1 for key, value in load_file("kept").items()}, init)
    assert "toy.init.safetensors has changed since the run was started" in refused(controls=True)
    shutil.move("kept", init)
    found = cs.train(resume=True, device="cpu", controls=True, seeds=1)
    assert found.step == 4
    assert found.controls is not None


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_controls_of_a_run_without_an_init_are_refused() -> None:
    toy.write()
    stop_at(2, config="toy.yaml", device="cpu")
    assert "none are given" in refused(controls=True)


# Checks after the last step.


@pytest.mark.costly
@pytest.mark.parametrize("nonfinite", [0, 1, 3])
def test_a_run_that_begins_with_what_is_not_finite_has_a_report(
    nonfinite: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "1")
    monkeypatch.setenv("TOY_NAN_TO", "999")
    toy.write(nonfinite=nonfinite)
    found = cs.train("toy.yaml", device="cpu")
    assert (found.ended, found.step, found.exit_code) == ("nonfinite", nonfinite + 1, 1)
    checks = by_name(read_report("run"))
    assert checks["finite steps"].status == "FAIL"
    resumed = checks["resumed is uninterrupted"]
    assert (resumed.status, resumed.says) == ("NOT RUN", "too many of the first steps are not finite")
    assert [(checks[name].status, checks[name].says) for name in (REOPENED, BEST)] == [
        ("NOT RUN", "nothing was saved"), ("NOT RUN", "no best model was saved"),
    ]  # fmt: skip


@pytest.mark.long
def test_an_older_checkpoint_is_not_held_against_steps_that_were_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 1 to 4 are saved and 5 and 6 not; the best is of step 4."""
    monkeypatch.setattr(checking, "resume_is_exact", lambda *args, **options: Check("left out", "NOT RUN", ""))
    toy.write(nonfinite=2)
    text = Path("toy_task.py").read_text()
    Path("toy_task.py").write_text(text.replace("NANS = ", "NANS = range(7, 99)\nUNUSED = "))
    found = cs.train("toy.yaml", device="cpu")
    assert (found.ended, found.step) == ("nonfinite", 9)
    checks = by_name(found)
    assert (checks[REOPENED].status, checks[REOPENED].says) == (
        "NOT RUN",
        "step 9 was not saved; the last saved step is 8",
    )
    assert checks[BEST].status == "PASS"
    assert checks[BEST].says.endswith("over dev")


@pytest.mark.long
@pytest.mark.parametrize("task", ["Toy", "NoDev"])
def test_the_best_is_reopened_as_the_average_that_was_evaluated(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "resume_is_exact", lambda *args, **options: Check("left out", "NOT RUN", ""))
    toy.write(ema=0.9, task=f"toy_task.py:{task}")
    checks = by_name(cs.train("toy.yaml", device="cpu"))
    assert [checks[name].status for name in (REOPENED, BEST)] == ["PASS", "PASS"]
    assert checks[REOPENED].says != checks[BEST].says


@pytest.mark.costly
@pytest.mark.parametrize("name", ["overfits_one_batch", "resume_is_exact", "reload_in_new_process"])
def test_a_check_that_fails_itself_is_not_run_and_loses_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Check:
        raise RuntimeError("out of memory")

    for other in ("resume_is_exact", "reload_in_new_process"):
        monkeypatch.setattr(checking, other, lambda *args, **options: [])
    monkeypatch.setattr(checking, "resume_is_exact", lambda *args, **options: Check("left out", "NOT RUN", ""))
    monkeypatch.setattr(
        checking, "reload_in_new_process", lambda job, saved, **options: [Check(one.name, "PASS", "") for one in saved]
    )
    monkeypatch.setattr(checking, name, broken)
    toy.write()
    found = cs.train("toy.yaml", run="run", device="cpu", overfit_one_batch=True, steps=4)
    wrong = [check for check in found.checks if "out of memory" in check.says]
    assert len(wrong) == {"overfits_one_batch": 1, "resume_is_exact": 1, "reload_in_new_process": 2}[name]
    assert {(check.status, check.says) for check in wrong} == {
        ("NOT RUN", "an error occurred: RuntimeError: out of memory")
    }
    assert read_report("run").checks == found.checks


# Settings and data.


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("name", "value"), [("save_every", 1), ("keep", 5), ("data.workers", 0), ("data.cache", "cache")]
)
def test_what_may_be_another_changes_no_bit_of_the_weights(name: str, value: object) -> None:
    toy.write()
    cs.train("toy.yaml", run="whole", device="cpu")
    stop_at(5, config="toy.yaml", device="cpu")
    cs.train(resume=True, device="cpu", sets=[f"{name}={value}"])
    assert Path("run/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
    best, known = (load_file(f"{folder}/best.safetensors") for folder in ("run", "whole"))
    assert all(torch.equal(best[key], tensor) for key, tensor in known.items())


@pytest.mark.long
def test_these_and_no_others_may_be_others() -> None:
    assert FREE == ("save_every", "keep", "data.workers", "data.cache", "epochs", "loggers")  # steps are compared
    others = {
        "batch_size": 9, "accumulate": 2, "optimizer": "sgd", "lr": 0.1, "betas": [0.5, 0.5], "eps": 1e-6,
        "weight_decay": 0.1, "schedule": "linear", "warmup": 3, "final_lr": 0.1, "clip": 1.0, "freeze": ["head"],
        "lr_scale": {"head": 2.0}, "ema": 0.9, "precision": "bf16", "label_smoothing": 0.1, "seed": 1,
        "evaluate_every": 3, "metric": "loss", "patience": 9, "nonfinite": 9, "deterministic": True,
    }  # fmt: skip
    began = lineage_of(toy.job(), None, RunFolder("run"), ())
    for name, value in others.items():
        with pytest.raises(ConfigError, match=rf"other settings: train\.{name} was"):
            check_unchanged(toy.job(**{name: value}), began, RunFolder("run"))
    assert check_unchanged(toy.job(keep=7, loggers=["mlflow"]), began, RunFolder("run")) == []


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_other_threads_and_another_device_go_on_and_are_said(ckpt: Run) -> None:
    toy.write()
    stop_at(5, config="toy.yaml", device="cpu")
    path = Path("run/lineage.json")
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    done = ckpt("train", "--resume", "--device", "cpu", "--set", "threads=2")
    assert done.code == 0, done
    assert "note: device was cuda, is now cpu: the run continues, but its results will not be" in done.err
    assert "note: threads was 1, is now 2: the run continues, but its results will not be" in done.err


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_task_that_was_edited_is_said(ckpt: Run) -> None:
    toy.write()
    stop_at(5, config="toy.yaml", device="cpu")
    Path("toy_task.py").write_text(Path("toy_task.py").read_text() + "\n")
    assert "toy_task.py:Toy has changed since run was started" in ckpt("train", "--resume").err


@pytest.fixture
def heard() -> str:
    """A configuration of tones."""
    Path("alphabet.txt").write_text("a\nb\nc\n")
    corpus("train.csv", ["a", "b", "c", "ab"])
    corpus("dev.csv", ["a", "b"])
    model = {
        "name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0,
    }  # fmt: skip
    train = {
        "task": "ctc", "steps": 2, "features": {"size": 10, "stack": 2},
        "data": {"train": "train.csv", "dev": "dev.csv", "tokens": "alphabet.txt"},
    }  # fmt: skip
    Path("x.yaml").write_text(yaml.safe_dump({"model": model, "train": train}))
    return "x.yaml"


@pytest.mark.costly
@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("alphabet.txt", "a\nb\n", "b\na\n", "alphabet.txt has other tokens than when run was started"),
        (
            "train.csv",
            "train-0.wav,a",
            "train-0.wav,b",
            "train.csv has other clips for train than when run was started",
        ),
        ("train.csv", "train-0.wav,a\n", "", "train.csv has other clips for train"),
        ("dev.csv", "dev-0.wav,a\n", "", "dev.csv has other clips for dev"),
    ],
)
def test_other_data_behind_the_same_settings_are_refused_by_name(
    file: str, old: str, new: str, why: str, heard: str
) -> None:
    began = json.loads(json.dumps(lineage_of(build_job(heard, device="cpu"), None, RunFolder("run"), ())))
    assert check_unchanged(build_job(heard, device="cpu"), began, RunFolder("run")) == []
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        check_unchanged(build_job(heard, device="cpu"), began, RunFolder("run"))
    assert str(caught.value).startswith(why)


def test_other_clips_of_test_are_noted(heard: str) -> None:
    corpus("test.csv", ["a", "b"])
    now = partial(build_job, heard, sets=["data.test=[test.csv]"], device="cpu")
    began = json.loads(json.dumps(lineage_of(now(), None, RunFolder("run"), ())))
    assert check_unchanged(now(), began, RunFolder("run")) == []
    corpus("test.csv", ["a", "c"])
    assert check_unchanged(now(), began, RunFolder("run")) == [
        "test.csv has other clips for test than when run was started"
    ]


def test_a_corpus_that_was_moved_with_its_configuration_is_the_same(heard: str) -> None:
    began = lineage_of(build_job(heard, device="cpu"), None, RunFolder("run"), ())
    os.mkdir("there")
    for name in os.listdir():
        if name != "there":
            shutil.move(name, "there")
    assert check_unchanged(build_job(f"there/{heard}", device="cpu"), began, RunFolder("run")) == []


def test_a_fresh_process_computes_as_the_run_does(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Threads and determinism are the settings', there too."""
    import io

    from ckptsurgeon.trainer.checks import saved as again

    loop = toy.loop(folder="run", threads=2, deterministic=True)
    loop.run(until=4)
    seen = []
    real = again.loss_per_item

    def loss(*args: Any, **options: Any) -> float:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return real(*args, **options)

    monkeypatch.setattr(again, "loss_per_item", loss)
    order = {
        "config": "toy.yaml", "sets": [], "device": "cpu", "overfitting": False, "init": None,
        "saved": [{"weights": "run/last/model.safetensors", "dev": False, "step": 4}],
    }  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(order)))
    before = torch.get_num_threads()
    again.main()
    assert seen == [(2, True)]
    assert torch.get_num_threads() == before
    assert capsys.readouterr().out.strip().startswith(again.LOSS_PREFIX)
