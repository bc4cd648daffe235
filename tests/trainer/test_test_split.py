"""The split ``test``: what is evaluated on it, when, and where it is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.evaluation import evaluate
from ckptsurgeon.trainer.log import read_log

from . import toy

Run = Callable[..., Any]
SECTION: dict[str, Any] = {"task": "toy_task.py:WithTest", "steps": 8, "evaluate_every": 2, "lr": 0.3, "warmup": 0}


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks that train again or start a process."""
    from ckptsurgeon.trainer.run import run_job as running

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("cheap", "NOT RUN", "a test")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no TensorBoard, no matplotlib


def evaluations() -> int:
    return len(Path("evaluated.txt").read_text().splitlines())


def logged(run: str = "run") -> list[dict[str, Any]]:
    return [row for row in read_log(f"{run}/log.jsonl") if "test" in row]


def figures_of(path: str, task: str = "toy_task.py:WithTest") -> dict[str, float]:
    """What a file's weights are like on the test split."""
    made = toy.job(**{**SECTION, "task": task})
    model = made.empty_model()
    model.load_state_dict(load_file(path))
    assert made.test is not None
    return evaluate(model, made.task, made.test.read(0, 0), settings=made.settings)


@pytest.mark.long
def test_the_best_weights_are_evaluated_once_and_it_is_told_everywhere(ckpt: Run) -> None:
    toy.write(**{**SECTION, "lr": 0.5}, ema=0.5)
    done = ckpt("train", "toy.yaml", "--device", "cpu")
    assert done.code == 0, done
    assert evaluations() == 6  # one batch before the first step, and four on dev
    told = json.loads(ckpt("train", "--report", "--json").out)
    assert told["test"] == figures_of("run/best.safetensors") != figures_of("run/last/model.safetensors")
    assert told["test_clips"] == 60
    assert logged() == [{"step": told["best_step"], "test": told["test"], "test_clips": 60}]
    assert told["best_step"] < 8
    *_, trained, test, following = done.out.splitlines()
    assert trained.startswith("  trained run")
    assert test.startswith("  test    60 clips  loss ")
    assert f"error {told['test']['error']:.3g}" in test
    assert following.startswith("  next:")
    assert test in ckpt("train", "--report").out
    assert "test" not in done.err


FULL = """
import os
import torch
from toy_task import WithTest

class Full(WithTest):
    def evaluate(self, model, batches):
        if os.path.exists("run/result.json") and not os.path.exists("alone"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().evaluate(model, batches)
"""


def test_too_little_memory_after_the_last_step_names_the_weights_and_how_to_evaluate_them(ckpt: Run) -> None:
    Path("full.py").write_text(FULL)
    toy.write(**{**SECTION, "task": "full.py:Full", "batch_size": 4})
    done = ckpt("train", "toy.yaml", "--device", "cpu", "--set", "lr=0.2")
    said = " ".join(done.err.split())
    assert done.code == 2, done
    assert "the training is complete, and its weights are in run/best.safetensors, but the GPU" in said
    command = "ckpt train toy.yaml --set lr=0.2 --init run/best.safetensors --evaluate test --set batch_size=2"
    assert f"Evaluate alone: {command}" in said
    assert load_file("run/best.safetensors").keys() == load_file("run/last/model.safetensors").keys()
    Path("alone").touch()
    alone = ckpt(*command.split()[1:], "--device", "cpu")
    assert (alone.code, "error" in alone.out) == (0, True), alone


@pytest.mark.long
def test_python_returns_it() -> None:
    toy.write(**SECTION)
    seen: list[Any] = []
    found = cs.train("toy.yaml", device="cpu", observer=seen.append)
    assert dict(found.test) == figures_of("run/best.safetensors")
    assert [row for row in seen if "test" in row] == [{"step": found.best_step, "test": found.test, "test_clips": 60}]


def test_without_dev_it_is_the_last_weights() -> None:
    toy.write(**{**SECTION, "task": "toy_task.py:TestAlone"})
    found = cs.train("toy.yaml", device="cpu")
    assert found.best is None
    assert dict(found.test) == figures_of("run/last/model.safetensors")
    assert [row["step"] for row in logged()] == [8]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("settings", [{}, {"patience": 1, "steps": 40}, {"task": "toy_task.py:TestAlone"}])
def test_a_run_that_ended_is_not_evaluated_again(settings: dict[str, Any]) -> None:
    toy.write(**{**SECTION, **settings})
    first = cs.train("toy.yaml", device="cpu")
    before, log = evaluations(), Path("run/log.jsonl").read_text()
    again = cs.train(resume=True, device="cpu")
    assert (again.test, again.test_clips, again.step, again.ended) == (first.test, 60, first.step, first.ended)
    assert evaluations() == before
    assert Path("run/log.jsonl").read_text() == log


@pytest.mark.long
def test_a_run_that_is_stopped_leaves_it_to_its_end() -> None:
    def stop(row: Any) -> None:
        if row.get("step") == 5 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    toy.write(**SECTION)
    whole = cs.train("toy.yaml", device="cpu", run="whole")
    stopped = cs.train("toy.yaml", device="cpu", observer=stop)
    assert (stopped.ended, stopped.test, logged()) == ("SIGTERM", {}, [])
    found = cs.train(resume=True, device="cpu")
    assert found.test == whole.test
    assert logged() == logged("whole")


@pytest.mark.long
def test_a_run_made_longer_is_evaluated_where_its_best_is_another() -> None:
    toy.write(**SECTION, schedule="constant")
    first = cs.train("toy.yaml", device="cpu", steps=2)
    longer = cs.train(resume=True, device="cpu", steps=4)
    assert (first.best_step, longer.best_step) == (2, 4)
    assert [row["step"] for row in logged()] == [2, 4]
    assert dict(longer.test) == figures_of("run/best.safetensors") != first.test


def test_one_batch_by_heart_is_not_tested() -> None:
    toy.write(**SECTION)
    assert cs.train("toy.yaml", device="cpu", overfit_one_batch=True).test == {}


def test_where_no_model_is_the_best_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(**SECTION)
    text = Path("toy_task.py").read_text().replace('"error": wrong / items', '"error": math.nan')
    Path("toy_task.py").write_text(text)
    found = cs.train("toy.yaml", device="cpu")
    assert found.test == {}
    assert "test was not evaluated" in found.notes[-1]
