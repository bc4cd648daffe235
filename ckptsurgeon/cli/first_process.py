"""Lets the first of several processes do work that is not shared out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from ..util.torchrun import number_of_processes

__all__ = ["by_the_first"]

T = TypeVar("T")


def by_the_first(work: Callable[[], T]) -> T:
    """Return the result of ``work``. Of the processes that ``torchrun`` starts, only the first one does the work.

    The others wait, and end when it is done, with its error if it fails.
    """
    if number_of_processes() == 1:
        return work()
    from ..api.process_shares import first_process

    with first_process() as is_first:
        if is_first:
            return work()
    raise typer.Exit
