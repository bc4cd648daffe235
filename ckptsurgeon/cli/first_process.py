"""Lets the first of several processes do work that is not shared out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import typer

from ..util.torchrun import alone, number_of_processes

__all__ = ["by_the_first", "run_by_the_first"]

T = TypeVar("T")
P = ParamSpec("P")


def by_the_first(work: Callable[[], T]) -> T:
    """Return the result of ``work``, which only the first of the processes that ``torchrun`` starts carries out.

    The other processes wait until the work is done, and then end. If the work fails, they end with the same error.
    """
    if number_of_processes() == 1:
        return work()
    from ..api.process_shares import first_process

    ended = typer.Exit()
    with first_process() as is_first:
        if is_first:
            try:
                with alone():
                    return work()
            except typer.Exit as answer:  # the other processes must not raise it as an error
                ended = answer
    raise ended


def run_by_the_first(verb: Callable[P, None]) -> Callable[P, None]:
    """Return a function like ``verb``, a whole command, that only the first process runs."""

    @wraps(verb)
    def run(*args: P.args, **options: P.kwargs) -> None:
        by_the_first(partial(verb, *args, **options))

    return run
