"""The open sources of a plan while it is made: closed if that fails, else kept open for ``apply``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from ...checkpoint.checkpoint import Checkpoint
from ...planning.quantised import QuantisedError
from .encoding import ENCODINGS, read_as

__all__ = ["KeptOpen", "check_decodable"]


class KeptOpen:
    """A block that closes the checkpoints which its lists hold at its end, if it fails.

    The first of ``opened`` are the ``sources``, by default all. If their codes would be used as numbers, as they cannot
    be decoded, the caller gets the error that says why. It is a class and not a generator: a generator on an
    ``ExitStack`` whose callbacks are popped would end, and close them, when it is collected as garbage.
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
    """Raise the PlanError that ``read_as`` passes over, for the first source whose codes cannot be decoded."""
    for one in sources:
        read_as(one, ENCODINGS[1])
