"""What a folder of ``ckpt train`` says of its run: its log, its checks, what came of it, where it came from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, SourceError
from ..text import escape

__all__ = ["Run", "is_run", "read_run"]

POINTS = 2000
"""Of a curve: more than a screen has columns."""
MODELS = ("best.safetensors", os.path.join("last", "model.safetensors"))
"""Which weights of a run are shown: the first that is there."""
LARGEST = 64 << 20
"""Bytes of a file that is read whole; a run's are far smaller."""


@dataclass
class Run:
    """A run as its folder tells it; ``model`` is the checkpoint to show, None where none was saved yet."""

    path: str
    model: str | None
    lineage: Mapping[str, Any]
    result: Mapping[str, Any]
    checks: list[Any]
    steps: list[list[Any]] = field(default_factory=list)
    rates: list[str] = field(default_factory=list)
    evaluations: list[list[Any]] = field(default_factory=list)
    every: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return what a page shows: of the steps each ``every``-th as [step, loss, gradient norm, *rates]."""
        return {
            "path": self.path, "model": self.model, "lineage": dict(self.lineage), "result": dict(self.result),
            "checks": self.checks, "every": self.every, "rates": self.rates, "steps": self.steps,
            "evaluations": self.evaluations,
        }  # fmt: skip


def is_run(path: str) -> bool:
    """Tell whether a path is the folder of a run, ended or under way."""
    return os.path.isfile(os.path.join(path, "lineage.json"))


def read_run(path: str) -> Run:
    """Read what a run left in its folder.

    Raises SourceError where a file cannot be read, FormatError where it is not what a run writes.
    """
    model = next((name for name in MODELS if os.path.isfile(os.path.join(path, name))), None)
    run = Run(path, model, _read(path, "lineage.json"), _read(path, "result.json"), [])
    checks = _read(path, "checks.json").get("checks", [])
    run.checks = [row for row in checks if isinstance(row, dict)] if isinstance(checks, list) else []
    rows = list(_rows(os.path.join(path, "log.jsonl")))
    steps = [row for row in rows if "loss" in row]
    run.every = max(1, math.ceil(len(steps) / POINTS))
    run.rates = sorted({str(name) for row in steps[-1:] for name in _mapping(row.get("lr"))})
    run.steps = [_step(row, run.rates) for row in steps[:: run.every]]
    run.evaluations = [[_number(row.get("step")), _numbers(row["dev"])] for row in rows if "dev" in row]
    return run


def _step(row: Mapping[str, Any], rates: list[str]) -> list[Any]:
    given = _mapping(row.get("lr"))
    return [_number(row.get(name)) for name in ("step", "loss", "grad_norm")] + [
        _number(given.get(one)) for one in rates
    ]


def _rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; the last may be half a one where the run was killed or goes on."""
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = _parsed(line)
                if isinstance(row, dict):
                    yield row
    except OSError as error:
        raise SourceError(f"{escape(path)} cannot be read: {error.strerror or error}.") from error


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _read(path: str, name: str) -> dict[str, Any]:
    """Return the plain data of a file, {} where there is none."""
    file = os.path.join(path, name)
    try:
        if os.path.getsize(file) > LARGEST:
            raise FormatError(f"{escape(file)} is not what a run writes: it has more than {LARGEST} bytes.")
        with open(file, encoding="utf-8") as opened:
            data = json.load(opened, parse_constant=lambda _: None, parse_float=_finite)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SourceError(f"{escape(file)} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{escape(file)} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise FormatError(f"{escape(file)} is not what a run writes.")
    return data


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float | None]:
    return {str(name): _number(one) for name, one in _mapping(value).items()}


def _number(value: Any) -> float | None:
    """Return a number with six digits, None for what is none or not finite."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
