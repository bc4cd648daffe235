"""Collects errors, so that a user sees all errors in the data at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import CheckpointError

__all__ = ["ErrorCollector"]


class ErrorCollector:
    """Collects errors (CheckpointError); its method ``check`` raises all of them as one error."""

    def __init__(self) -> None:
        self._found: list[CheckpointError] = []

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Catch a CheckpointError that the block raises, and collect it."""
        try:
            yield
        except CheckpointError as error:
            self._found.append(error)

    def add(self, *errors: CheckpointError) -> None:
        """Collect ``errors``, which ``check`` raises later."""
        self._found += errors

    def check(self) -> None:
        """Raise the collected errors: a single error as it is, several as one error with all messages and details."""
        if not self._found:
            return
        first, *others = self._found
        self._found = []
        if not others:
            raise first
        more = " ".join(error.message for error in others)
        details = [one for error in (first, *others) for one in (error.details or (error.message,))]
        raise type(first)(
            f"{first.message} And: {more}", hint=first.hint, details=list(dict.fromkeys(details)), rule=first.rule
        )
