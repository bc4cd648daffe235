"""How the models of a search are scored: by the command of ``--evaluate``, or by the task of ``--task``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...destinations._document import Document, read_document
from ...errors import ConfigError
from ...planning.plan.plan import Plan
from ...util.notes import with_prefix
from ...util.text import escape
from .evaluation import Command, Runner
from .evaluator import Evaluator, check_timeout
from .shared_data import notes_on_data, notes_on_splits
from .task import DEV, TEST, SplitEvaluator, TaskFacts, TaskProcesses

__all__ = ["Judge", "Judging", "opened_judge"]


@dataclass(frozen=True)
class Judging:
    """The arguments on how models are scored; ``maximize`` is None if the task decides which scores are better."""

    evaluate: str | None
    task: str | None
    metric: str | None
    maximize: bool | None
    test: str | None
    timeout: float | None


@dataclass(frozen=True)
class Judge:
    """Scores the models of trials (``evaluator``), and the output if there are data for it (``test``).

    ``settings`` are the entries of the study that record how models are scored. In a search without trials, nothing is
    started: then ``evaluator`` is None, and ``maximize`` is None if only the task knows it. ``check`` raises
    ConfigError if the model that a plan makes does not fit the network of the task.
    """

    evaluator: Evaluator | None
    test: Evaluator | None
    metric: str
    maximize: bool | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    check: Callable[[Plan], None] = lambda plan: None


@contextmanager
def opened_judge(said: Judging, *, runs: bool = True) -> Iterator[Judge]:
    """Yield the Judge that scores the models; afterwards, end all processes that it has started.

    ``runs`` is false if nothing may be started. Raises ConfigError for a wrong command or configuration, and the errors
    of the configuration's data.
    """
    if (said.evaluate is None) == (said.task is None):
        raise ConfigError(
            "a search needs either a command that scores a model, or a task."
            if said.task is None
            else "--evaluate and --task contradict each other.",
            hint="Give --evaluate 'CMD {model}', or --task CONFIG of ckpt train.",
        )
    tested = Command.parsed("--test", said.test, metric=said.metric or "", timeout=said.timeout) if said.test else None
    runner = Runner(tested) if tested is not None else None
    try:
        if said.task is not None:
            with _task(said, said.task, tested, runner, runs=runs) as judge:
                yield judge
        else:
            yield _command(said, tested, runner)
    finally:
        if runner is not None:
            runner.stop()


def _command(said: Judging, tested: Command | None, runner: Runner | None) -> Judge:
    if said.maximize is None:
        raise ConfigError(
            "it is not known whether a larger or a smaller score is better.",
            hint="Give --maximize (accuracy) or --minimize (loss, error rate).",
        )
    metric = said.metric or ""
    command = Command.parsed("--evaluate", said.evaluate or "", metric=metric, timeout=said.timeout)
    settings = {"evaluate": said.evaluate, "metric": metric, "maximize": said.maximize}
    notes = tuple(notes_on_data(command, tested))
    return Judge(Runner(command), runner, metric, said.maximize, settings, notes)


@contextmanager
def _task(said: Judging, config: str, tested: Command | None, runner: Runner | None, *, runs: bool) -> Iterator[Judge]:
    check_timeout(said.timeout)
    document = read_document(config, "configuration")
    if not runs:
        yield Judge(None, None, said.metric or "", said.maximize, notes=tuple(notes_on_splits(document, tested)))
        return
    processes = TaskProcesses(os.path.abspath(config), said.timeout)
    try:
        facts = processes.begin()
        if DEV not in facts.splits:
            raise ConfigError(
                f"{escape(document.name)} has no split dev, with which --task scores models.",
                hint="Give data that the models were not trained on in train.data.dev.",
            )
        metric = said.metric or facts.metric
        if metric not in facts.known:
            processes.check_metric(metric, DEV)
        maximize = said.maximize if said.maximize is not None else metric in facts.higher
        settings = {
            "evaluate": f"the task of {document.name}", "metric": metric, "maximize": maximize,
            "task": hashlib.sha256(document.text.encode()).hexdigest(),
        }  # fmt: skip
        has_test = TEST in facts.splits
        own_test = SplitEvaluator(processes, TEST, metric) if has_test else None
        notes = (_said(document, metric, maximize=maximize), *notes_on_splits(document, tested, has_test=has_test))
        evaluator = SplitEvaluator(processes, DEV, metric)
        yield Judge(
            evaluator, runner or own_test, metric, maximize, settings, (*notes, *_of_task(facts)),
            lambda plan: processes.check_fit(_tensors_of(plan)),
        )  # fmt: skip
    finally:
        processes.stop()


def _tensors_of(plan: Plan) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the (key, dtype, shape) of each tensor that a plan stores."""
    return [(one.key, one.dtype, one.shape) for one in plan.steps if one.key not in plan.target.implied]


def _said(document: Document, metric: str, *, maximize: bool) -> str:
    better = "larger" if maximize else "smaller"
    return f"the score of a model is {escape(metric)} on the split dev of {escape(document.name)}; {better} is better"


def _of_task(facts: TaskFacts) -> tuple[str, ...]:
    return tuple(with_prefix("--task: ", note) for note in facts.notes)
