"""Processes forked for tests: what a library does after a fork harms no file of theirs, and an early end is noticed."""

from __future__ import annotations

import os

import pytest

from ..helpers.forked import Forked

OWN: list[int] = []


def _reopen() -> None:
    """Do what Arrow and others do in a process that was forked: close their pipe, and open another."""
    if OWN:
        for number in OWN:
            os.close(number)
        OWN[:] = os.pipe()


def _read(number: int) -> bytes:
    os.set_blocking(number, False)
    try:
        return os.read(number, 5)
    except OSError:
        return b""


os.register_at_fork(after_in_child=_reopen)


def test_a_library_that_reopens_its_pipe_after_a_fork_closes_no_other_file() -> None:
    """It once closed the queue of a worker of a DataLoader, which then waited for ever."""

    def work() -> int:
        pipes = [os.pipe() for _ in range(20)]  # one of them has the numbers of each file that was closed
        for _, writer in pipes:
            os.write(writer, b"order")
        pid = os.fork()
        if not pid:
            os._exit(any(_read(reader) != b"order" for reader, _ in pipes))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    OWN[:] = os.pipe()
    try:
        assert Forked(work).ended() == 0
    finally:
        for number in OWN:
            os.close(number)
        OWN.clear()


def test_waiting_for_a_process_that_has_ended_fails_at_once() -> None:
    with pytest.raises(AssertionError, match="it ended with 3 before"):
        Forked(lambda: 3).wait_until(lambda: False)
