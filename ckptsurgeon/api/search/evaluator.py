"""The interface for scoring a model: by the command of ``--evaluate``, or by the task of ``--task``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import ConfigError

__all__ = ["Evaluator", "Outcome", "check_timeout", "finite_score"]


@dataclass(frozen=True)
class Outcome:
    """The result of an evaluation: a finite ``score``, or None and the reason why the evaluation failed (``why``)."""

    score: float | None
    why: str = ""
    seconds: float = 0.0


class Evaluator(Protocol):
    """Scores models, several at a time if it is called from several threads."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes on the evaluations so far."""
        ...

    def evaluate(self, model: str) -> Outcome:
        """Return the score of the model at a path; a failure of the evaluation is an outcome without a score."""
        ...

    def stop(self) -> None:
        """End all evaluations that are running, and start no more."""
        ...


def finite_score(value: float, said: str) -> Outcome:
    """Return an outcome with the score ``value``, or without a score if ``value`` is NaN or infinite.

    ``said`` is the score as the evaluation printed it, for the message.
    """
    return Outcome(value) if math.isfinite(value) else Outcome(None, f"the score is {said}, not a finite number")


def check_timeout(timeout: float | None) -> None:
    """Raise ConfigError unless ``timeout`` is None, or a finite number of seconds above 0."""
    if timeout is not None and not (timeout > 0 and math.isfinite(timeout)):
        raise ConfigError(f"--trial-timeout {timeout} is not a valid time.", hint="Give seconds, such as 600.")
