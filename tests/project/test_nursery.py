"""The process from which others are forked: how they end is told, and so is its own end."""

from __future__ import annotations

from functools import cache

import pytest

from ..helpers import nursery
from ..helpers.nursery import run_apart


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("code", "ended", "said"), [("", 0, ""), ("3", 3, ""), ("True", 1, ""), ("'too late'", 1, "too late\n")]
)
def test_a_program_exits_as_in_python(streams: bool, code: str, ended: int, said: str) -> None:
    done = run_apart(f"import sys; sys.exit({code})", streams=streams)
    assert (done.returncode, done.stderr) == (ended, said)


@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_nursery_that_ends_says_how_and_is_replaced(is_noticed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has imported little, so that the other tests keep theirs."""
    monkeypatch.setattr(nursery, "_small", cache(lambda: nursery.Nursery("")))
    process = nursery._small()._process
    process.kill()
    if is_noticed:
        process.wait()
    with pytest.raises(AssertionError, match="has ended with -9"):
        run_apart("")
    assert run_apart("print(1)").stdout == "1\n"
