"""Scores models by the task of a configuration of ``ckpt train``, on one of its splits, without training.

The models are evaluated in child processes, each of which imports torch and reads the data once. So an evaluation that
hangs can be killed. An evaluation that crashes, or is killed because it takes too much memory, makes a failed trial.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ... import errors
from ...errors import CheckpointError, ConfigError
from ...util.text import escape
from .evaluation import SAID, Tail, last_line
from .evaluator import Outcome, finite_score

__all__ = ["DEV", "TEST", "SplitEvaluator", "TaskFacts", "TaskProcesses"]

DEV, TEST = "dev", "test"
"""The split with which trials are evaluated, and the split with which the output is evaluated."""
LOOK_S = 0.2
"""While ckpt waits for an answer, it checks at this interval whether the process has ended or takes too long."""
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ckptsurgeon.trainer.run.judge_models import main; "
    "main(sys.argv[2], int(sys.argv[3]))"
)
"""The program of a child process. It gets the module search path of this process, to which -P adds no folder."""


@dataclass(frozen=True)
class TaskFacts:
    """The facts that a task reports about itself: metric, splits of its data, notes, and the figures that it returns.

    ``higher`` has the figures of which a larger value is better. ``known`` has the figures that the task always
    returns; it may return further figures.
    """

    metric: str
    higher: frozenset[str]
    splits: frozenset[str]
    notes: tuple[str, ...]
    known: frozenset[str]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> TaskFacts:
        """Return the facts in an answer of the child process; raises the error in it, if it has one."""
        if "error" in answer:
            kind = getattr(errors, str(answer["error"]), ConfigError)
            raise kind(f"--task: {answer['message']}", hint=answer["hint"], details=answer["details"])
        higher = {*answer["higher"], *([answer["metric"]] if answer["maximize"] else [])}
        known = frozenset(answer["known"])
        return cls(answer["metric"], frozenset(higher), frozenset(answer["splits"]), tuple(answer["notes"]), known)


class TaskProcesses:
    """The processes that evaluate models for a configuration: one for each evaluation that runs at the same time."""

    def __init__(self, config: str, timeout: float | None) -> None:
        self._config, self._timeout = config, timeout
        self._idle: list[_Process] = []
        self._all = set[_Process]()
        self._lock = threading.Lock()
        self._stopped = False

    def begin(self) -> TaskFacts:
        """Start the first process, and return the facts it reports; raises the errors of configuration and data."""
        process, facts = self._started()
        self._keep(process)
        return facts

    def figures(self, model: str, split: str) -> dict[str, Any]:
        """Return ``{"figures": {name: value}}`` of a model on a split, or ``{"why": reason}``."""
        return self._answer({"model": model, "split": split})

    def check_metric(self, metric: str, split: str) -> None:
        """Raise ConfigError if the task returns no figure ``metric`` on a split; a new model is evaluated for this."""
        names = self._answer({"metric": metric, "split": split}).get("names")
        if names is not None and metric not in names:
            raise ConfigError(
                f"the score cannot be {escape(metric)}: the task of {escape(os.path.basename(self._config))} does not "
                "return this metric.",
                hint=f"Name one that it returns, with --metric: {escape(', '.join(names))}.",
            )

    def check_fit(self, tensors: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        """Raise ConfigError if models with ``tensors`` (key, dtype, shape) do not fit the network."""
        answer = self._answer({"tensors": tensors})
        if "unfit" in answer:
            raise ConfigError(
                f"--task: {answer['unfit']}",
                hint="Give the configuration of the network whose weights are merged.",
                details=answer["details"],
            )

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of a process to a request, or ``{"why": reason}`` if there is none.

        A process that takes longer than the time limit is killed; a new process is started for the next request.
        """
        try:
            process = self._asked(request)
        except (CheckpointError, OSError) as error:
            return {"why": error.message if isinstance(error, CheckpointError) else f"{error.strerror or error}"}
        try:
            answer = process.answer(self._timeout)
        except TimeoutError:
            self._end(process)
            return {"why": f"the evaluation ran for more than {self._timeout:g} s, and was killed"}
        except (OSError, EOFError):
            return {"why": self._end(process)}
        self._keep(process)
        return answer

    def stop(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._stopped = True
            every, idle = self._all, self._idle
            self._all, self._idle = set(), []
        for one in every:
            one.kill()
        for one in idle:  # a busy process is closed by the thread that waits for its answer
            one.close()

    def _asked(self, request: Mapping[str, Any]) -> _Process:
        """Return a process that has been sent a request: one that is idle, or else a new one.

        If an idle process has ended, another one gets the request: it is not the model of this request that ended the
        process.
        """
        while (process := self._free()) is not None:
            try:
                process.ask(request)
            except OSError:
                self._end(process)
            else:
                return process
        process, _ = self._started()
        with suppress(OSError):  # if the new process ends, too, ``answer`` raises the error
            process.ask(request)
        return process

    def _free(self) -> _Process | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _keep(self, process: _Process) -> None:
        """Keep a process for the next model; end it if ``stop`` was called in the meantime."""
        with self._lock:
            if not self._stopped:
                self._idle.append(process)
                return
        self._end(process)

    def _started(self) -> tuple[_Process, TaskFacts]:
        with self._lock:
            if self._stopped:
                raise ConfigError("ckpt search was interrupted.")
            process = _Process(self._config)
            self._all.add(process)
        try:
            return process, TaskFacts.of(process.answer(None))
        except EOFError:
            raise ConfigError(f"--task {escape(self._config)}: {self._end(process)}.") from None
        except CheckpointError:
            self._end(process)
            raise

    def _end(self, process: _Process) -> str:
        with self._lock:
            self._all.discard(process)
        how = process.kill()
        process.close()
        return how


class _Process:
    """A child process: it answers each request, a line of JSON, with a line of JSON."""

    def __init__(self, config: str) -> None:
        self._answers, there = os.pipe()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, json.dumps(sys.path), config, str(there)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(there,),
                start_new_session=True,
            )  # fmt: skip
        except OSError:
            os.close(self._answers)
            raise
        finally:
            os.close(there)
        assert self._child.stderr is not None
        self._complained, self._read = Tail(self._child.stderr), b""

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request to the process; raises OSError if it has ended."""
        assert self._child.stdin is not None
        if self._child.poll() is not None:  # its child processes may keep the pipe open
            raise BrokenPipeError
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()

    def answer(self, timeout: float | None) -> dict[str, Any]:
        """Return the next answer of the process, which may take ``timeout`` seconds.

        Raises TimeoutError, and EOFError or OSError if the process has ended.
        """
        until = None if timeout is None else time.monotonic() + timeout
        answers = select.poll()  # select.select cannot wait for file descriptors above 1023
        answers.register(self._answers, select.POLLIN)
        while b"\n" not in self._read:
            if not answers.poll(LOOK_S * 1000):
                if self._child.poll() is not None:  # its child processes may keep the pipe open
                    raise EOFError
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
                continue
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise EOFError
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def kill(self) -> str:
        """Kill the process and its children; return a text on how it ended, with the last line of its stderr."""
        with suppress(OSError):
            os.killpg(self._child.pid, signal.SIGKILL)
        code = self._child.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        return f"the process of the evaluation {how}{last_line(self._complained.text())}"

    def close(self) -> None:
        """Close the pipes to the process, which has ended."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        os.close(self._answers)


@dataclass(frozen=True)
class SplitEvaluator:
    """Scores models by a figure of the task on one split; the metric is known, so that no notes are needed."""

    processes: TaskProcesses
    split: str
    metric: str
    notes: tuple[str, ...] = ()

    def evaluate(self, model: str) -> Outcome:
        """Return the figure of the model at a path, or the reason why there is none."""
        begin = time.monotonic()
        answer = self.processes.figures(model, self.split)
        found = self._outcome(answer)
        return Outcome(found.score, found.why, time.monotonic() - begin)

    def _outcome(self, answer: Mapping[str, Any]) -> Outcome:
        figures = answer.get("figures")
        if figures is None:
            return Outcome(None, escape(str(answer.get("why")), SAID).rstrip("."))
        if self.metric not in figures:
            return Outcome(None, f"the task returns no {escape(self.metric)}, but {escape(', '.join(figures))}")
        return finite_score(float(figures[self.metric]), str(figures[self.metric]))

    def stop(self) -> None:
        """End all evaluations, including evaluations on the other split."""
        self.processes.stop()
