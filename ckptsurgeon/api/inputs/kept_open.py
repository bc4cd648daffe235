"""The open sources of a plan while it is made: closed if that fails, else kept open for ``apply``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...checkpoint.checkpoint import Checkpoint
from ...planning.quantised import QuantisedError
from .encoding import ENCODINGS, read_as

__all__ = ["kept_open", "saying_what_is_undecodable"]


@contextmanager
def kept_open(*lists: list[Checkpoint]) -> Iterator[None]:
    """Close the checkpoints that the lists hold at the end of the block, if it fails; the first has the sources.

    If codes of the sources would be used as numbers, as they cannot be decoded, the error says why they cannot.
    """
    try:
        with saying_what_is_undecodable(lists[0]):
            yield
    except BaseException:
        for checkpoint in (one for each in lists for one in each):
            checkpoint.close()
        raise


@contextmanager
def saying_what_is_undecodable(sources: list[Checkpoint]) -> Iterator[None]:
    """Raise the error that ``read_as`` passed over if the block finds that the weights of codes are needed."""
    try:
        yield
    except QuantisedError:
        for one in sources:
            read_as(one, ENCODINGS[1])
        raise
