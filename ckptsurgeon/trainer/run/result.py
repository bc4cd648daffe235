"""The result of a run, as plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...util.notebook import InNotebooks
from ...util.short_repr import Brief
from ...util.text import escape
from ..checks.check import FAIL, Check

__all__ = ["Arm", "Controls", "Trained", "plain_json"]


@dataclass(frozen=True, repr=False)
class Arm(Brief):
    """The metric of control runs from one kind of initial weights, ``name``: a value for each seed.

    ``frozen`` is true if only new tensors were trained.
    """

    name: str
    frozen: bool
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the metric over the runs with different seeds."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, repr=False)
class Controls(Brief):
    """The verdict of the control runs: whether the knowledge in the initial weights helped.

    Training from the given initial weights (warm) is compared with training from scratch, and from the given weights
    with permuted values. The metric on ``dev`` after the last step decides.

    ``verdict`` is KNOWLEDGE, SCALE ONLY or NONE. ``decided_on`` is the kind of runs that decide: "frozen" (only new
    tensors are trained) or "unfrozen". ``plateau`` lists the kinds of initial weights with a deciding run that has
    learned nothing yet: the model outputs only blanks, or the loss has hardly fallen. ``arms`` has the metric of all
    runs.
    """

    metric: str
    seeds: int
    steps: int
    arms: tuple[Arm, ...]
    verdict: str
    decided_on: str
    plateau: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Trained(InNotebooks):
    """The result of ``train``.

    ``ended`` is the reason why the run ended: "done", "patience", "nonfinite", "collapsed", "lost" (another process
    ended), "failed" (a check failed before the first step, so nothing was trained), or the name of a signal. It is
    "unchecked" if the model is trained, but the checks or controls after the last step are not done. It is "prepared"
    if only the data were prepared, "evaluated" if only the given weights were evaluated, and '' if only checks ran.

    ``figures`` are the metrics of the last evaluation, ``best`` is the best value of ``metric``. ``test`` are the
    metrics of the best weights on the ``test_clips`` clips of the split ``test``, empty if it was not evaluated.
    ``elapsed_s`` is the total time in seconds, including checks; of the time before the run was resumed, only the
    training time counts. ``train_s`` is the time of steps and evaluations alone. ``exit_code`` is the exit status of
    the program. With several processes, only ``rank`` 0 has the whole result; the other ranks check and write nothing.
    """

    config: str
    run: str | None
    init: str | None
    task: str
    device: str
    step: int
    steps: int
    ended: str
    checks: tuple[Check, ...]
    metric: str = ""
    best: float | None = None
    best_step: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    test_clips: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    skipped: int = 0
    elapsed_s: float = 0.0
    train_s: float = 0.0
    controls: Controls | None = None
    notes: tuple[str, ...] = ()
    exit_code: int = 0
    rank: int = 0

    def __repr__(self) -> str:
        statuses = Counter(check.status for check in self.checks)
        checks = ", ".join(f"{number} {status}" for status, number in statuses.items())
        ended = f"{self.ended or 'checks only'}, step {self.step} of {self.steps}"
        return f"<Trained {escape(self.config)}: {ended}; {checks}>"

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not any(check.status == FAIL for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the result as a dict for JSON; numbers that are not finite become None."""
        data: dict[str, Any] = plain_json(asdict(self))
        return {"kind": "ckpt.train", "version": 1, "ok": self.ok, **data}


def plain_json(value: Any) -> Any:
    """Return data with None in place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
