"""Two large headers are read in two processes: with the same result as in one, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.compare.outline import beside
from ckptsurgeon.api import diff as comparing


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Every file is large; what is done beside is collected."""
    done: list[Callable[[], object]] = []
    real = beside

    def watched(work: Callable[[], object]) -> object:
        done.append(work)
        return real(work)

    monkeypatch.setattr(comparing, "LARGE", 0)
    monkeypatch.setattr(comparing, "beside", watched)
    return done


def children() -> set[str]:
    """The processes that this one has begun and not waited for; other tests may have left some, such as a tracker."""
    if sys.platform != "linux":
        return set()
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def pair() -> None:
    torch.save({"model": {f"module.{k}": torch.ones(2, 3) for k in ("a", "b", "c", "r")}, "epoch": 3}, "a.pth")
    save_file({"a": torch.ones(2, 3), "b": torch.ones(3, 2), "c": torch.ones(2, 3).half(), "n": torch.ones(1)}, "b.st")


@pytest.mark.long
def test_two_processes_find_what_one_finds(large: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    pair()
    two = cs.diff("a.pth", "b.st"), cs.diff("b.st", "a.pth")
    assert len(large) == 2
    monkeypatch.setattr(comparing, "LARGE", 1 << 40)
    one = cs.diff("a.pth", "b.st"), cs.diff("b.st", "a.pth")
    assert len(large) == 2
    assert [d.to_json() for d in two] == [d.to_json() for d in one]
    assert [d.added + d.removed for d in two] == [("n", "r"), ("r", "n")]


@pytest.mark.costly
@pytest.mark.parametrize("broken", ["a.pth", "b.st"])
def test_a_file_that_cannot_be_read_is_the_same_error(large: list[Callable[[], object]], broken: str) -> None:
    pair()
    Path(broken).write_bytes(b"not a checkpoint")
    before = children()
    with pytest.raises(cs.FormatError, match=f"{broken} is not a checkpoint"):
        cs.diff("a.pth", "b.st")
    assert large
    assert children() <= before


def test_where_threads_run_nothing_is_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with beside(lambda: 1) as result:
            assert result() is None
    finally:
        stop.set()
        thread.join()


def alone(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has one thread; a test runner may have more, beside which nothing is forked."""
    program = f"""
import os, signal, threading
from ckptsurgeon.analysis.compare.outline import beside
def children():
    return open(f"/proc/self/task/{{os.getpid()}}/children").read()
assert threading.active_count() == 1
{textwrap.dedent(code)}
assert not children()
print("whole")
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.long
def test_what_is_too_much_for_a_pipe_comes_whole() -> None:
    done = alone("""
        with beside(lambda: list(range(500_000))) as result:
            assert children()
            assert result() == list(range(500_000))
    """)
    assert (done.stdout, done.stderr) == ("whole\n", "")


@pytest.mark.costly
@pytest.mark.parametrize(
    "work",
    ["os.kill(os.getpid(), signal.SIGKILL)", "[][1]", "exec('raise KeyboardInterrupt')", "exit(0)", "object()"],
)
def test_work_that_fails_gives_nothing(work: str) -> None:
    done = alone(f"""
        with beside(lambda: {work}) as result:
            assert children()
            assert result() is None
    """)
    assert (done.stdout, done.stderr) == ("whole\n", "")


@pytest.mark.long
def test_an_error_here_does_not_wait_for_the_other() -> None:
    done = alone("""
        import signal
        try:
            with beside(signal.pause):
                assert children()
                raise ValueError("here")
        except ValueError:
            pass
    """)
    assert (done.stdout, done.stderr) == ("whole\n", "")


@pytest.mark.long
def test_two_large_files_are_read_in_two_processes() -> None:
    pair()
    done = alone("""
        from ckptsurgeon.api import diff as comparing
        from ckptsurgeon.analysis.compare.outline import outline_from_plain
        comparing.LARGE = 0
        came = []
        comparing.outline_from_plain = lambda plain: came.append(plain) or outline_from_plain(plain)
        found = comparing.diff("a.pth", "b.st")
        assert len(came) == 1 and came[0][0] == "b.st", came
        assert (found.added, found.removed) == (("n",), ("r",))
    """)
    assert (done.stdout, done.stderr) == ("whole\n", "")


def test_an_interrupt_ends_both() -> None:
    program = """
import os, signal
from ckptsurgeon.analysis.compare.outline import beside
with beside(signal.pause) as result:
    print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
    result()
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode != 0
    assert said.count("KeyboardInterrupt") == 1
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
