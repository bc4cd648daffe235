"""Closes the open sources of a plan if planning fails; otherwise they stay open for ``apply``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from ...checkpoint.checkpoint import Checkpoint
from ...planning.quantised_error import QuantisedError
from .encoding import ENCODINGS, read_as

__all__ = ["KeptOpen", "check_decodable"]


class KeptOpen:
    """A context manager that closes the checkpoints in ``opened`` and ``others`` if its block raises.

    Checkpoints may be added to both lists in the block. The first ``sources`` checkpoints in ``opened`` are sources; by
    default all are. If the block raises QuantisedError because a source cannot be decoded, the error of decoding this
    source is raised instead.

    This is a class, not a generator-based context manager: if a generator-based one were popped from an ``ExitStack``,
    the garbage collection of its generator would close the checkpoints.
    """

    def __init__(
        self, opened: list[Checkpoint], others: Sequence[Checkpoint] = (), *, sources: int | None = None
    ) -> None:
        self._opened, self._others, self._sources = opened, others, sources

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            if isinstance(error, QuantisedError):
                check_decodable(self._opened[: self._sources])
        finally:
            for checkpoint in (*self._opened, *self._others):
                checkpoint.close()


def check_decodable(sources: Iterable[Checkpoint]) -> None:
    """Raise PlanError for the first source whose codes cannot be decoded.

    ``read_as`` raises no error for such a source if the encoding is ``keep``.
    """
    for one in sources:
        read_as(one, ENCODINGS[1])
