"""Of several processes, the first one runs a command that is not shared out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import typer

from ckptsurgeon.api import process_shares
from ckptsurgeon.cli.first_process import run_by_the_first


@pytest.fixture(params=[0, 1], ids=["first", "other"])
def ended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Be one of two processes; the list gets what ends the block of work as the group of processes sees it."""
    seen: list[BaseException | None] = []

    @contextmanager
    def first_process() -> Iterator[bool]:
        try:
            yield request.param == 0
        except BaseException as error:
            seen.append(error)
            raise
        seen.append(None)

    monkeypatch.setenv("RANK", str(request.param))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(process_shares, "first_process", first_process)
    return seen


def test_the_answer_no_is_no_error_of_the_first(ended: list[BaseException | None]) -> None:
    ran: list[bool] = []

    @run_by_the_first
    def verb(code: int) -> None:
        ran.append("RANK" not in os.environ)
        raise typer.Exit(code)

    with pytest.raises(typer.Exit) as caught:
        verb(1)
    first = os.environ["RANK"] == "0"
    assert (ran, caught.value.exit_code) == (([True], 1) if first else ([], 0))
    assert (ended, os.environ["WORLD_SIZE"]) == ([None], "2")
