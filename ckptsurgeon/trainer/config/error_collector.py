"""Collects errors, so that the user sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        begin, *more = _together([error.message for error in (first, *others)])
        details = [one for error in (first, *others) for one in (error.details or (error.message,))]
        raise type(first)(
            f"{begin} And: {' '.join(more)}" if more else begin,
            hint=first.hint,
            details=list(dict.fromkeys(details)),
            rule=first.rule,
        )


def _together(messages: Sequence[str]) -> list[str]:
    """Return the messages; messages ``PLACE: TEXT`` with equal texts are joined to ``PLACE, PLACE: TEXT``."""
    places: dict[str, list[str]] = {}
    for message in messages:
        place, colon, what = message.partition(": ")
        places.setdefault(colon + what if " " not in place else "", []).append(place if " " not in place else message)
    made = list[str]()
    for what, some in places.items():
        made += [f"{', '.join(dict.fromkeys(some))}{what}"] if what else some
    return made
