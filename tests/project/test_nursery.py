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


@pytest.mark.long
def test_a_nursery_that_ends_says_so_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has imported little, so that the other tests keep theirs."""
    monkeypatch.setattr(nursery, "_small", cache(lambda: nursery.Nursery("")))
    for _ in range(2):
        with pytest.raises(AssertionError, match="has ended"):
            run_apart("import os; os.kill(os.getppid(), 9)")
        assert run_apart("print(1)").stdout == "1\n"


@pytest.mark.long
def test_one_process_forks_those_that_fork_for_each_process_of_tests() -> None:
    """Each has imported its modules, which takes long; their streams are apart."""
    first, second = nursery.Nursery(IMPORTS), nursery.Nursery(IMPORTS)
    said = [run_apart(PROGRAM, nursery=one).stdout.split() for one in (first, second, first)]
    assert len({imported for imported, _ in said}) == 1
    assert said[0][1] == said[2][1] != said[1][1]


def test_a_nursery_that_cannot_start_is_an_error() -> None:
    with pytest.raises(AssertionError, match="has ended"):
        run_apart("", nursery=nursery.Nursery("import none_of_this_name"))


IMPORTS = "ckptsurgeon.imported_by = os.getpid()"
PROGRAM = "import os, ckptsurgeon; print(ckptsurgeon.imported_by, os.getppid())"
