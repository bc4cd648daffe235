"""What is said of something that no format here reads."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from ...errors import FormatError
from ...util.text import escape

__all__ = ["Foreign", "argument", "refused"]


class Foreign(NamedTuple):
    """What something is, and what to do with it."""

    what: str
    advice: str = ""


def argument(name: str) -> str:
    """Return a name as a shell takes it, safe for a terminal."""
    return escape(shlex.quote(name))


def refused(uri: str, found: Foreign | None, rule: str = "unknown format") -> FormatError:
    """Return the error for a file or folder that is no checkpoint."""
    if found is None:
        return FormatError(f"{escape(uri)} is not a checkpoint.", rule=rule)
    return FormatError(
        f"{escape(uri)} is not a checkpoint that ckpt reads: it is {found.what}.", hint=found.advice, rule=rule
    )
