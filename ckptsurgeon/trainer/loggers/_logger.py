"""What a logger is: one place that gets the figures of a run while it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = ["LoggedRun", "Logger", "Summary", "scalars"]


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run before its first step.

    ``folder`` is the run folder. ``step`` is the step at which a resumed run goes on, 0 for a new run; ``id`` is the id
    under which the logger has logged the run before, '' if it has not. ``config`` are the settings, as nested dicts.
    """

    name: str
    folder: str
    step: int = 0
    id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """How a run ended: numbers and texts by name (``best``, ``checks/first loss``), and the exit status."""

    values: Mapping[str, float | str]
    exit_code: int = 0
    is_stopped: bool = False
    """Whether a signal stopped the run."""


class Logger(ABC):
    """A place for the figures of a run. A module of this folder names a subclass ``LOGGER``.

    An object is made in the main thread before the first step, and used in one other thread. Whatever it raises ends
    the logger, not the run, and is shown to the user once. Only rank 0 has loggers.
    """

    package: ClassVar[str]
    """The package that must be installed."""
    extra: ClassVar[str]
    """The extra of ckptsurgeon that installs it."""
    is_automatic: ClassVar[bool] = False
    """Whether it is used, if its package is installed, without being named in ``train.loggers``."""

    id: str = ""
    """The name by which the logger finds the run again when it is resumed."""
    place: str = ""
    """Where the user finds what is logged; '' if that need not be said."""

    @abstractmethod
    def __init__(self, run: LoggedRun) -> None:
        """Begin to log a new run, or go on with one that has an ``id``."""

    @abstractmethod
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log some rows of the log, the oldest first: steps, evaluations (``dev``), and the figures of ``test``."""

    @abstractmethod
    def finish(self, summary: Summary) -> None:
        """Log how the run ended, and wait until all is written or sent."""


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a row of the log by name, those in nested dicts as ``parts/ctc``; the step is left out."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= {f"{name}/{part}": one for part, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and name != "step"}
