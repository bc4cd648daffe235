"""Joins several errors to one, so that the user sees all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import CheckpointError

__all__ = ["joined"]


def joined(errors: Sequence[CheckpointError]) -> CheckpointError:
    """Return one error with all messages and details of ``errors``; a single error is returned as it is.

    The type, the hint and the rule are those of the first error.
    """
    first, *others = errors
    if not others:
        return first
    begin, *more = _together([error.message for error in errors])
    details = [one for error in errors for one in (error.details or (error.message,))]
    return type(first)(
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
