"""What is wrong with data, all of it: errors of several kinds are one, whose details are all of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import CheckpointError

__all__ = ["ErrorCollector"]


class ErrorCollector:
    """Gathers errors, so that what is wrong in five ways is mended in one go."""

    def __init__(self) -> None:
        self._found: list[CheckpointError] = []

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Keep an error of the block for later."""
        try:
            yield
        except CheckpointError as error:
            self._found.append(error)

    def add(self, *errors: CheckpointError) -> None:
        """Keep errors for later."""
        self._found += errors

    def check(self) -> None:
        """Raise what was found: one error as it is, several as the first of them, which says the others too."""
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
