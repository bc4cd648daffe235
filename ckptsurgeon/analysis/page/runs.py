"""Reads the folder of a training run: its log, checks, curves and result.

The files may be incomplete, and are not trusted: unexpected data is left out, and sizes are limited.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from ...errors import FormatError, SourceError
from ...storage.small_files import open_file
from ...util.text import escape
from .html import integer, listed, mapping, number, numbers, text

__all__ = ["FILES", "Curves", "Run", "is_run", "read_run"]

# The curves of a run, thinned while its log is read, so that a log of a million steps needs little memory.

POINTS = 2000
"""The most points of a curve: more than a screen has columns."""


class Curves:
    """The curves of a training run: every ``every``-th step of its log, from the first, and its evaluations."""

    def __init__(self) -> None:
        self.every = 1
        self._seen = 0
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
            self._evaluations.append((step, numbers(row["dev"])))
            del self._evaluations[2 * POINTS :]

    def _add_step(self, step: int, row: Mapping[str, Any]) -> None:
        if self._seen % self.every == 0:
            rates = numbers(mapping(row.get("lr")))
            self._steps.append((step, number(row.get("loss")), number(row.get("grad_norm")), rates))
        self._seen += 1
        if len(self._steps) > POINTS:
            self._steps = self._steps[::2]
            self.every *= 2

    def to_json(self) -> dict[str, Any]:
        """Return the steps as [step, loss, gradient norm, *learning rates], the evaluations as [step, figures]."""
        rates = sorted({name for *_, given in self._steps for name in given})
        return {
            "every": self.every,
            "rates": rates,
            "steps": [[*row, *(given.get(name) for name in rates)] for *row, given in self._steps],
            "evaluations": self._evaluations,
        }


LINEAGE, RESULT, CHECKS, LOG = "lineage.json", "result.json", "checks.json", "log.jsonl"
FILES = (LINEAGE, RESULT, CHECKS, LOG)
"""The files of a run that are read."""
MODELS = (
    "best.safetensors",
    os.path.join("adapter", "adapter_model.safetensors"),
    os.path.join("last", "model.safetensors"),
)
"""The weights of a run to show: the first file that exists."""
LARGEST = 64 << 20
"""The most bytes of a file that is read whole; those of a run are far smaller."""
LINE = 1 << 20
"""The most characters of a line of the log."""


@dataclass(frozen=True)
class Run:
    """A training run as read from its folder; ``model`` is the checkpoint to show, None if none was saved."""

    path: str
    model: str | None
    lineage: Mapping[str, Any]
    result: Mapping[str, Any] | None
    checks: tuple[Mapping[str, str], ...]
    curves: Curves

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain data, for a page."""
        return {
            "path": self.path,
            "model": self.model,
            "lineage": self.lineage,
            "result": self.result,
            "checks": self.checks,
            **self.curves.to_json(),
        }


def is_run(path: str) -> bool:
    """Return whether a path is the folder of a training run, finished or not."""
    return os.path.isfile(os.path.join(path, LINEAGE))


def read_run(path: str) -> Run:
    """Read the folder of a run.

    Raises SourceError if a file cannot be read, FormatError if it is not valid JSON or far too large.
    """
    model = next((name for name in MODELS if os.path.isfile(os.path.join(path, name))), None)
    curves = Curves()
    for row in _rows(os.path.join(path, LOG)):
        curves.add(row)
    checks = tuple(_check(row) for row in listed(_read(path, CHECKS).get("checks")) if isinstance(row, Mapping))
    return Run(path, model, _lineage(_read(path, LINEAGE)), _result(_read(path, RESULT)), checks, curves)


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


def _rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a log, one from each line; lines that are not valid are skipped.

    The last line may be incomplete if the run was killed or is not finished.
    """
    file = _opened(path)
    if file is None:
        return
    with file:
        while line := file.readline(LINE):
            row = _parsed(line)
            if isinstance(row, dict):
                yield row


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read(path: str, name: str) -> Mapping[str, Any]:
    """Return the JSON object in a file of a run's folder, {} if the file does not exist.

    Raises FormatError if the file is too large or not valid.
    """
    file = _opened(os.path.join(path, name))
    if file is None:
        return {}
    with file:
        content = file.read(LARGEST + 1)
    shown = escape(os.path.join(path, name))
    if len(content) > LARGEST:
        raise FormatError(f"{shown} is not a file of a training run: it has more than {LARGEST} characters.")
    try:
        data = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{shown} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise FormatError(f"{shown} is not a file of a training run: it is not a JSON object.")
    return data


def _opened(path: str) -> IO[str] | None:
    """Open a text file; returns None if it does not exist.

    Raises SourceError if it cannot be read or is not a regular file: opening a pipe would block.
    """
    try:
        return io.TextIOWrapper(open_file(path), encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror or error}.") from error


def _finite(spelled: str) -> float | None:
    value = float(spelled)
    return value if math.isfinite(value) else None
