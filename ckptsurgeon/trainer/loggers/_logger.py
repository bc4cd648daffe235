"""The interface of a logger, which gets the log of a run while the run trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = ["LoggedRun", "Logger", "Summary", "scalars"]


@dataclass(frozen=True)
class LoggedRun:
    """The facts about a run that a logger gets before the first step.

    ``folder`` is the run folder. ``step`` is the step at which a resumed run continues, 0 for a new run. If the logger
    has logged this run before, ``id`` is the id that it gave the run; otherwise ''. ``config`` has the settings, as
    nested dicts.
    """

    name: str
    folder: str
    step: int = 0
    id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The summary of a run: numbers and strings by name (``best``, ``checks/first loss``), and the exit status."""

    values: Mapping[str, float | str]
    exit_code: int = 0
    is_stopped: bool = False
    """Whether a signal stopped the run."""


class Logger(ABC):
    """The base class of loggers. Each module of this folder has a subclass, in the variable ``LOGGER``.

    A logger is created in the main thread before the first step, and then used in a single other thread. If it raises
    an error, the logger ends, but the run goes on, and the user sees the error once. Only rank 0 has loggers.
    """

    package: ClassVar[str]
    """The Python package that the logger needs."""
    extra: ClassVar[str]
    """The extra of ckptsurgeon that installs the package, as in ``pip install ckptsurgeon[EXTRA]``."""
    is_automatic: ClassVar[bool] = False
    """Whether the logger is used if its package is installed, even if ``train.loggers`` does not list it."""

    id: str = ""
    """The id by which the logger finds this run again when the run is resumed."""
    place: str = ""
    """The place where the user finds the log, for a note to the user; there is no note if it is ''."""

    @abstractmethod
    def __init__(self, run: LoggedRun) -> None:
        """Begin to log a new run, or, if the run has an ``id``, continue its earlier log."""

    @abstractmethod
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows of the run's log, the oldest first: steps, evaluations (``dev``), and the metrics of ``test``."""

    @abstractmethod
    def finish(self, summary: Summary) -> None:
        """Log the summary of the run, and wait until everything is written or sent."""


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a row of the log, without the step, by name; nested names are like ``parts/ctc``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= {f"{name}/{part}": one for part, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and name != "step"}
