"""The open sources of a plan while it is made: closed if that fails, else kept open for ``apply``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ...checkpoint.checkpoint import Checkpoint
from ...planning.quantised import QuantisedError
from .encoding import ENCODINGS, read_as

__all__ = ["check_decodable", "kept_open"]


@contextmanager
def kept_open(
    opened: list[Checkpoint], others: Sequence[Checkpoint] = (), *, sources: int | None = None
) -> Iterator[None]:
    """Close the checkpoints that the lists hold at the end of the block, if it fails.

    The first of ``opened`` are the ``sources``, by default all. If their codes would be used as numbers, as they cannot
    be decoded, the error says why they cannot.
    """
    try:
        yield
    except BaseException as error:
        try:
            if isinstance(error, QuantisedError):
                check_decodable(opened[:sources])
            raise
        finally:
            for checkpoint in (*opened, *others):
                checkpoint.close()


def check_decodable(sources: Iterable[Checkpoint]) -> None:
    """Raise the PlanError that ``read_as`` passes over, for the first source whose codes cannot be decoded."""
    for one in sources:
        read_as(one, ENCODINGS[1])
