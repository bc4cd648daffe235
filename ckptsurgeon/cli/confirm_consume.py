"""Asks twice before a run deletes its sources (``--consume``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from ..util.text import count, human_bytes, listing

if TYPE_CHECKING:
    from ..planning.plan.plan import Plan

__all__ = ["ask_to_consume", "check_can_ask"]


def check_can_ask() -> None:
    """Raise ConfigError if stdin is not a terminal, so that no question can be asked."""
    from ..errors import ConfigError

    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise ConfigError(
            "--consume asks before it deletes the sources, but stdin is not a terminal, so nobody can answer.",
            hint="Add --yes to delete the sources without a question.",
        )


def ask_to_consume(plan: Plan) -> None:
    """Ask the user twice whether the open sources of a plan may be deleted; raises ConfigError if an answer is no."""
    from ..api.files_to_consume import consumption
    from ..errors import ConfigError

    found, lost = consumption(plan), ""
    what = f"{count(len(found.files), 'file')} ({human_bytes(found.nbytes)}): {listing(found.files, 3, where='')}"
    if found.lost:
        number = count(len(found.lost), "tensor")
        lost = f"Not used by the output, and lost after the run: {number} ({listing(found.lost, 3, where='')}). "
    first = f"The run deletes {what} while it writes the output. Go on?"
    if not (typer.confirm(first, err=True) and typer.confirm(f"{lost}Really delete the files?", err=True)):
        raise ConfigError("you did not agree to delete the files, so nothing was written or deleted.")
