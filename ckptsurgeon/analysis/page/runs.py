"""Reads the folder of a training run: its log, checks, curves and result.

The files may be incomplete, and are not trusted: unexpected data is left out, and sizes are limited.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .html import integer, listed, mapping, number, numbers, text
from .run_files import json_lines, json_object
from .worst_clips import HYPOTHESES, WorstClips, read_worst_clips

__all__ = ["FILES", "Curves", "Run", "is_run", "read_run"]

# The curves of a run. Steps are dropped while the log is read, so that a log of a million steps needs little memory.

POINTS = 2000
"""The largest number of points of a curve; a screen has about as many columns of pixels."""


class Curves:
    """The curves of a training run: every ``every``-th step of its log, and its evaluations, beginning with the first.

    ``every`` is doubled as the log grows, so that a curve of steps has at most ``POINTS`` points. If there are over
    twice as many evaluations, only every second, fourth … is kept in the same way, and the last.
    """

    def __init__(self) -> None:
        self.every = 1
        self._seen = 0
        self._evaluated, self._kept = 0, 1
        self._steps: list[tuple[int, float | None, float | None, dict[str, float]]] = []
        self._evaluations: list[tuple[int, dict[str, float]]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a line of the log if it is a step or an evaluation; other lines are left out."""
        step = integer(row.get("step"))
        if step is None:
            return
        if "loss" in row:
            self._add_step(step, row)
        if isinstance(row.get("dev"), Mapping):
            self._add_evaluation(step, numbers(row["dev"]))

    def _add_evaluation(self, step: int, figures: dict[str, float]) -> None:
        if self._evaluated and (self._evaluated - 1) % self._kept:
            self._evaluations.pop()  # it was the last, but is none of those that are kept
        self._evaluations.append((step, figures))
        self._evaluated += 1
        if len(self._evaluations) > 2 * POINTS:
            self._evaluations = self._evaluations[::2]
            self._kept *= 2

    def _add_step(self, step: int, row: Mapping[str, Any]) -> None:
        if self._seen % self.every == 0:
            rates = numbers(mapping(row.get("lr")))
            self._steps.append((step, number(row.get("loss")), number(row.get("grad_norm")), rates))
        self._seen += 1
        if len(self._steps) > POINTS:
            self._steps = self._steps[::2]
            self.every *= 2

    def to_json(self) -> dict[str, Any]:
        """Return the curves as plain data.

        Each step is [step, loss, gradient norm, *learning rates], each evaluation is [step, metrics]. ``rates`` are the
        names of the learning rates.
        """
        rates = sorted({name for *_, given in self._steps for name in given})
        return {
            "every": self.every,
            "rates": rates,
            "steps": [[*row, *(given.get(name) for name in rates)] for *row, given in self._steps],
            "evaluations": self._evaluations,
        }


LINEAGE, RESULT, CHECKS, LOG = "lineage.json", "result.json", "checks.json", "log.jsonl"
FILES = (LINEAGE, RESULT, CHECKS, LOG, HYPOTHESES)
"""The files of a run that are read."""
MODELS = (
    "best.safetensors",
    os.path.join("adapter", "adapter_model.safetensors"),
    os.path.join("last", "model.safetensors"),
)
"""The files of a run that may have its weights; the first that exists is shown."""


@dataclass(frozen=True)
class Run:
    """A training run as read from its folder; ``model`` is the checkpoint to show, None if none was saved."""

    path: str
    model: str | None
    lineage: Mapping[str, Any]
    result: Mapping[str, Any] | None
    checks: tuple[Mapping[str, str], ...]
    curves: Curves
    clips: WorstClips | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain data, for a page."""
        return {
            "path": self.path,
            "model": self.model,
            "lineage": self.lineage,
            "result": self.result,
            "checks": self.checks,
            "clips": self.clips.to_json() if self.clips is not None else None,
            **self.curves.to_json(),
        }


def is_run(path: str) -> bool:
    """Return whether a path is the folder of a training run, finished or not."""
    return os.path.isfile(os.path.join(path, LINEAGE))


def read_run(path: str, page: str | None = None) -> Run:
    """Read the folder of a training run.

    ``page`` is the path of the page that will show the run; None if the page is not written to a file. Raises
    SourceError if a file cannot be read, FormatError if it is not valid JSON or far too large.
    """
    model = next((name for name in MODELS if os.path.isfile(os.path.join(path, name))), None)
    curves = Curves()
    for row in json_lines(os.path.join(path, LOG)):
        curves.add(row)
    checks = tuple(_check(row) for row in listed(json_object(path, CHECKS).get("checks")) if isinstance(row, Mapping))
    lineage, result = _lineage(json_object(path, LINEAGE)), _result(json_object(path, RESULT))
    return Run(path, model, lineage, result, checks, curves, read_worst_clips(path, page))


def _lineage(found: Mapping[str, Any]) -> dict[str, Any]:
    init = mapping(found.get("init"))
    return {
        "init": text(init.get("path") or init.get("name")) if init else None,
        "seed": integer(found.get("seed")),
        "device": text(found.get("device")),
        "processes": integer(found.get("processes")),
        "steps": integer(mapping(found.get("settings")).get("steps")),
        "task": text(mapping(found.get("settings")).get("task")),
    }


def _result(found: Mapping[str, Any]) -> dict[str, Any] | None:
    if not found:
        return None
    return {
        **{name: text(found.get(name)) for name in ("ended", "task", "metric")},
        **{name: integer(found.get(name)) for name in ("step", "steps", "best_step")},
        **{name: number(found.get(name)) for name in ("best", "elapsed_s")},
        "test": numbers(found.get("test")),
        "notes": [text(note) for note in listed(found.get("notes"))],
        "controls": _controls(mapping(found.get("controls"))),
    }


def _controls(found: Mapping[str, Any]) -> dict[str, Any] | None:
    if not found:
        return None
    arms = [mapping(arm) for arm in listed(found.get("arms"))]
    return {
        **{name: text(found.get(name)) for name in ("verdict", "decided_on", "metric")},
        **{name: integer(found.get(name)) for name in ("seeds", "steps")},
        "arms": [
            {
                "name": text(arm.get("name")),
                "frozen": arm.get("frozen") is True,
                "values": [value for value in map(number, listed(arm.get("values"))) if value is not None],
            }
            for arm in arms
        ],
    }


def _check(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: text(row.get(name)) for name in ("name", "status", "says", "when")}
