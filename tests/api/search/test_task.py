"""A search whose judge is a task of ``ckpt train``: its scores, its splits, and every way in which it can fail."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import ckptsurgeon as cs
from ckptsurgeon.api.search import task
from ckptsurgeon.api.search.evaluation import Command
from ckptsurgeon.api.search.evaluator import Outcome
from ckptsurgeon.api.search.shared_data import notes_on_splits
from ckptsurgeon.api.search.task import SplitEvaluator, TaskProcesses
from ckptsurgeon.destinations._document import read_document

from ...helpers.forked_judges import ForkedJudge
from ...helpers.waiting import wait_until
from .conftest import Evaluation, recipe
from .test_evaluation import is_alive
from .test_search import STUDY, lines

Run = Callable[..., Any]

CODE = """
import math, os, signal
import torch
from torch import nn
from ckptsurgeon.trainer.tasks._task import Batch, Loss

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.zeros(4)), nn.Linear(3, 3, bias=False)

class One:
    def __init__(self, wanted):
        self.wanted = wanted
    def size(self, epoch):
        return 1
    def read(self, seed, epoch, start=0):
        one = torch.ones(1, 1)
        yield Batch(one * self.wanted, one[0], one, one[0], 1.0, ("clip",))

class Near:
    metric = "far"
    higher = ("near",)
    def __init__(self, settings, tokens):
        with open("begun", "a") as file:
            file.write("x")
    def splits(self):
        return {"train": One(0.0), "dev": One(0.75), "test": One(0.25)}
    def loss(self, model, batch):
        return Loss(model.w.sum(), 1)
    def evaluate(self, model, batches):
        print("far: 99")
        (batch,) = batches
        far = abs(float(model.w[0] - batch.inputs[0, 0]))
        return {"far": far, "near": 1 - far}

class NoTest(Near):
    def splits(self):
        return {"train": One(0.0), "dev": One(0.75)}

class NoDev(Near):
    def splits(self):
        return {"train": One(0.0)}

class Two(One):
    def read(self, seed, epoch, start=0):
        yield from [*super().read(seed, epoch)] * 2

class Rarely(Near):
    def splits(self):
        return {"train": One(0.0), "dev": Two(0.75)}
    def evaluate(self, model, batches):
        number = len(list(batches))
        return {"far": 0.5, **({"rare": number} if number > 1 else {})}

class Failing(Near):
    def evaluate(self, model, batches):
        kind = round(4 * float(model.w[0]))
        if kind == 1:
            raise ValueError("no such clip")
        if kind == 2:
            open("pid", "w").write(str(os.getpid()))
            signal.pause()
        if kind == 3:
            print("out of luck", file=__import__("sys").stderr, flush=True)
            os._exit(7)
        return {"far": math.nan if kind == 4 else 0.5}
"""


STARTED = ("a_task_scores", "does_not_import_from_the_working_directory", "while_it_was_idle")
"""Words of the tests that start processes as ckpt does: the processes of the others are forked, and import nothing."""


@pytest.fixture(autouse=True)
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(words in request.node.name for words in STARTED):
        monkeypatch.setattr(task, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": ForkedJudge}))


@pytest.fixture(autouse=True)
def configuration() -> None:
    Path("judge.py").write_text(CODE)
    written("judge.yaml", "Near")
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, 0)))


def written(name: str, task: str, **data: Any) -> None:
    train = {"task": f"judge.py:{task}", "steps": 1, "batch_size": 1, "lr": 0.1, **({"data": data} if data else {})}
    Path(name).write_text(yaml.safe_dump({"model": {"_target_": "judge.Net"}, "train": train}))


def searched(**options: Any) -> Any:
    given = {"task": "judge.yaml", "trials": 5, "force": True, "sampler": "grid", **options}
    return cs.search("recipe.yaml", "out.safetensors", **given)


def test_a_task_scores_models_on_dev_and_the_output_on_test() -> None:
    found = searched()
    assert [one.score for one in found.trials] == [0.75, 0.5, 0.25, 0.0, 0.25]
    assert (found.best.number, found.maximize, found.metric, found.test) == (4, False, "far", 0.5)
    assert found.verification.ok
    assert found.notes == ("the score of a model is far on the split dev of judge.yaml; smaller is better",)
    assert Path("begun").read_text() == "x"  # one process for all trials and the test
    by_train = cs.train("judge.yaml", init="out.safetensors", device="cpu", evaluate="test")
    assert by_train.figures["far"] == found.test
    assert [row["state"] for row in lines()] == ["begun", "done"] * 5
    assert json.loads((STUDY / "study.json").read_text())["evaluate"] == "the task of judge.yaml"


def test_the_note_on_equal_scores_of_a_task_advises_nothing_on_printed_lines() -> None:
    Path("recipe.yaml").write_text(json.dumps(recipe({"choice": [0.5, 1.0]}, 0)))
    (note,) = [one for one in searched(trials=2).notes if "so no values are better" in one]
    assert "the split dev of the task" in note
    assert "NUMBER" not in note


@pytest.mark.long
def test_a_study_goes_on_with_the_same_configuration_only() -> None:
    first = searched(sampler="sobol", trials=2)
    more = searched(sampler="sobol", trials=3)
    assert [one.score for one in more.trials][:2] == [one.score for one in first.trials]
    assert len(more.trials) == 3
    assert [row["trial"] for row in lines() if row["state"] == "begun"] == [1, 2, 3]
    written("judge.yaml", "NoTest")
    with pytest.raises(cs.ConfigError, match=r"other settings: the SHA-256 of the configuration was"):
        searched(sampler="sobol", trials=3)
    with pytest.raises(
        cs.ConfigError, match=r"the evaluation was 'the task of judge\.yaml', and is 'true \{model\}' now"
    ):
        searched(sampler="sobol", trials=3, task=None, evaluate="true {model}", maximize=False, metric="far")


@pytest.mark.long
def test_another_figure_has_its_own_direction() -> None:
    written("judge.yaml", "NoTest")
    found = searched(metric="near")
    assert (found.maximize, found.best.number, found.best.score, found.test) == (True, 4, 1.0, None)
    assert found.notes[1].endswith("give other data in train.data.test of judge.yaml, or use --test")


@pytest.mark.long
def test_a_figure_that_the_task_does_not_return_is_an_error_before_the_first_trial() -> None:
    with pytest.raises(cs.ConfigError, match="the score cannot be wer: the task of .* does not return") as raised:
        searched(metric="wer")
    assert raised.value.hint == "Name one that it returns, with --metric: far, near."
    assert not STUDY.exists()
    written("judge.yaml", "Rarely")
    assert searched(metric="rare", maximize=False).best.score == 2.0  # found by an evaluation of all batches


@pytest.mark.long
def test_each_way_to_fail_makes_a_failed_trial() -> None:
    written("judge.yaml", "Failing")
    found = searched(trial_timeout=2.0)
    assert [one.why for one in found.trials] == [
        "",
        "the task judge.py:Failing fails in line 60: ValueError: no such clip",
        "the evaluation ran for more than 2 s, and was killed",
        "the process of the evaluation ended with exit status 7: out of luck",
        "the score is nan, not a finite number",
    ]
    assert found.best.number == 1
    assert Path("begun").read_text() == "xxx"
    wait_until(lambda: not is_alive(int(Path("pid").read_text())))


def test_models_that_do_not_fit_the_configuration_are_an_error_before_the_first_trial() -> None:
    Path("judge.py").write_text(CODE.replace("torch.zeros(4)", "torch.zeros(5)"))
    unfit = r"the merged models do not fit judge\.yaml: shape mismatch: w is \(4\) in these models, \(5\)"
    with pytest.raises(cs.ConfigError, match=unfit):
        searched()
    with pytest.raises(cs.ConfigError, match=unfit):
        cs.greedy_soup(["base.safetensors", "a.safetensors"], "soup.safetensors", task="judge.yaml")
    assert not STUDY.exists()
    assert not Path("soup.safetensors.study").exists()


@pytest.mark.costly
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "nodev.yaml"}, r"nodev\.yaml has no split dev"),
        ({"task": "gone.yaml"}, r"gone\.yaml"),
        ({"task": "wrong.yaml"}, "task: wrong.yaml: "),
        ({"task": "exits.yaml"}, "the process of the evaluation ended with exit status 3"),
        ({"task": None}, "needs either a command that scores a model, or a task"),
        ({"evaluate": "true {model}"}, "evaluate and task contradict each other"),
        ({"trial_timeout": 0.0}, "trial_timeout=0.0 is not a valid time"),
    ],
)
def test_what_cannot_judge_is_an_error_before_the_first_trial(options: dict[str, Any], message: str) -> None:
    written("nodev.yaml", "NoDev")
    Path("wrong.yaml").write_text("model: {_target_: judge.Net}\ntrain: {task: classify, stepps: 1}\n")
    Path("exit.py").write_text("import os\nos._exit(3)\n")
    Path("exits.yaml").write_text("model: {_target_: exit.Net}\ntrain: {task: 'judge.py:Near', steps: 1}\n")
    with pytest.raises(cs.ConfigError, match=message):
        searched(**options)
    assert not STUDY.exists()


def test_without_trials_no_code_of_the_task_runs() -> None:
    found = searched(trials=0, sampler="sobol")
    assert found.maximize is None
    assert found.to_json()["maximize"] is None
    assert not Path("begun").exists()


@pytest.mark.long
def test_a_test_command_takes_the_place_of_the_split(evaluation: Evaluation) -> None:
    found = searched(test=evaluation("print(w[0])", name="test.py"))
    assert found.test == 0.75


@pytest.mark.long
def test_a_greedy_soup_is_cooked_by_a_task() -> None:
    paths = ["base.safetensors", "a.safetensors", "b.safetensors"]
    found: Any = cs.greedy_soup(paths, "soup.safetensors", task="judge.yaml")
    assert found.best.values["models"] == ["base.safetensors", "a.safetensors"]
    assert (found.best.score, found.test) == (0.25, 0.25)
    assert Path("begun").read_text() == "x"


@pytest.mark.long
def test_evaluations_run_in_processes_of_their_own_and_stop() -> None:
    written("judge.yaml", "Failing")
    processes = TaskProcesses(os.path.abspath("judge.yaml"), None)
    assert processes.begin().metric == "far"
    judge, found = SplitEvaluator(processes, "dev", "far"), list[Outcome]()
    cs.apply(cs.merge(["base.safetensors", "a.safetensors"], method="linear", weights=[0.5, 0.5]), "half.safetensors")
    thread = threading.Thread(target=lambda: found.append(judge.evaluate("half.safetensors")))
    thread.start()
    wait_until(lambda: Path("pid").exists() and bool(Path("pid").read_text()))
    assert judge.evaluate("base.safetensors").score == 0.5  # by a second process
    judge.stop()
    thread.join(60)
    assert found[0].why == "the process of the evaluation was killed by signal 9"
    wait_until(lambda: not is_alive(int(Path("pid").read_text())))
    assert judge.evaluate("base.safetensors").why == "ckpt search was interrupted"


def test_a_process_that_answers_while_the_search_stops_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    written("judge.yaml", "Near")
    before = set(os.listdir("/proc/self/fd"))
    processes = TaskProcesses(os.path.abspath("judge.yaml"), None)
    processes.begin()
    answer = task._Process.answer

    def stopped(self: task._Process, timeout: float | None) -> dict[str, Any]:
        found = answer(self, timeout)
        processes.stop()
        return found

    monkeypatch.setattr(task._Process, "answer", stopped)
    assert SplitEvaluator(processes, "dev", "far").evaluate("base.safetensors").score is not None
    wait_until(lambda: not set(os.listdir("/proc/self/fd")) - before)


def test_a_process_that_ended_while_it_was_idle_is_replaced() -> None:
    written("judge.yaml", "Near")
    before = set(os.listdir("/proc/self/fd"))
    processes = TaskProcesses(os.path.abspath("judge.yaml"), None)
    processes.begin()
    (first,) = processes._idle
    os.kill(first._child.pid, signal.SIGKILL)
    wait_until(lambda: first._child.poll() is not None)
    judge = SplitEvaluator(processes, "dev", "far")
    assert judge.evaluate("base.safetensors").score is not None
    assert first not in processes._all
    (second,) = processes._idle
    os.kill(second._child.pid, signal.SIGKILL)  # and at once: the request may still be written to its pipe
    os.waitid(os.P_PID, second._child.pid, os.WEXITED | os.WNOWAIT)
    assert judge.evaluate("base.safetensors").score is not None
    judge.stop()
    wait_until(lambda: not set(os.listdir("/proc/self/fd")) - before)


@pytest.mark.long
def test_answers_are_read_from_descriptors_of_any_number() -> None:
    written("judge.yaml", "Near")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < 1200:
        pytest.skip(f"only {most} files may be open")
    with ExitStack() as stack:
        for _ in range(1100):  # as many shards may be open
            stack.enter_context(open(os.devnull))
        processes = TaskProcesses(os.path.abspath("judge.yaml"), None)
        stack.callback(processes.stop)
        assert processes.begin().metric == "far"
        assert SplitEvaluator(processes, "dev", "far").evaluate("base.safetensors").score is not None


@pytest.mark.long
def test_a_child_does_not_import_from_the_working_directory() -> None:
    Path("torch.py").write_text("open('imported', 'w')\n")
    searched(sampler="sobol", trials=1)
    assert not Path("imported").exists()


@pytest.mark.long
def test_the_command_needs_no_direction(ckpt: Run) -> None:
    line = ["merge", "search", "recipe.yaml", "--task", "judge.yaml", "--sampler", "sobol", "--trials", "2"]
    done = ckpt(*line, "-o", "out.safetensors")
    assert done.code == 0, done
    assert "the smallest far is best" in done.out
    assert "the score of a model is far on the split dev of judge.yaml; smaller is better" in " ".join(done.err.split())
    again = json.loads(ckpt(*line, "-o", "out.safetensors", "--force", "--json").out)
    assert (again["metric"], again["maximize"], again["compared"]) == ("far", False, 2)


# Search and test data.


def noted(dev: Any, test: Any, command: Command | None = None, **options: Any) -> list[str]:
    written("data.yaml", "Near", train="train.csv", dev=dev, test=test)
    return notes_on_splits(read_document("data.yaml", "configuration"), command, **options)


def test_data_of_dev_that_are_in_test_are_noted() -> None:
    rows = [f"clip-{number:04},text {number}" for number in range(20)]
    for name, some in (("dev", rows[:12]), ("copy", rows[:12]), ("over", rows[9:]), ("apart", rows[12:])):
        Path(f"{name}.csv").write_text("\n".join(["path,text", *some]) + "\n")
    assert noted("dev.csv", "apart.csv") == []
    (over,) = noted(["dev.csv"], ["apart.csv", "over.csv"])
    assert "over.csv of train.data.test are also in " in over
    assert over.startswith("3 lines of 11 in ")
    assert over.endswith("dev.csv of train.data.dev: the test score is too optimistic")
    (copied,) = noted("dev.csv", "copy.csv")
    assert copied.endswith("dev.csv of train.data.dev")
    (same,) = noted({"_target_": "judge.data"}, {"_target_": "judge.data"})
    assert same.startswith("train.data.dev and train.data.test have the same data")
    (none,) = noted("dev.csv", [])
    assert "give other data in train.data.test of data.yaml" in none
    assert noted("dev.csv", [], has_test=True) == []
    command = Command(("python", "test.py", "{model}", "over.csv"))
    (over,) = noted("dev.csv", [], command)
    assert over.startswith("3 lines of 11 in over.csv of --test are also in ")
