"""Processes forked from the one that tests: they start at once, with all that it has imported."""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn

__all__ = ["Forked", "as_ckpt", "ckpt_forked", "disconnect", "forked_torchrun", "in_a_small_process"]

LONGEST_S, SOON_S, LOOK_S = 120, 60, 0.005
"""After so long a process that has not ended, and one that has not come to a point, are at fault."""


class Forked:
    """A process that does some work, and ends with the code that this returns; what it says is kept.

    As one that is started anew it has no connections of this one, and says nothing into what pytest captures.
    """

    def __init__(self, work: Callable[[], int | None], *, environment: Mapping[str, str] | None = None) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._said: list[str] = []
        self.returncode: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: none that waits here holds a lock
            self.pid = os.fork()
        if not self.pid:
            _live(work, os.environ if environment is None else environment, self._files)

    def wait(self, timeout: float = LONGEST_S) -> int | None:
        """Return the exit code as subprocess has it, or None if it has not ended after so many seconds."""
        if self.returncode is None:
            handle = os.pidfd_open(self.pid)
            try:
                if select.select([handle], [], [], timeout)[0]:
                    self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                    self._said = self._read()
                    for file in self._files:
                        file.close()
            finally:
                os.close(handle)
        return self.returncode

    def ended(self, timeout: float = LONGEST_S) -> int:
        """Wait for the end; one that hangs says where, and fails."""
        code = self.wait(timeout)
        if code is None:
            self._fail(f"it did not end within {timeout} s")
        return code

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Return as soon as a fact is so; it fails, and says where it is, after a minute, or when it has ended."""
        end = time.monotonic() + SOON_S
        while not reached():
            if self.wait(LOOK_S) is not None:
                assert reached(), f"it ended with {self.returncode} before: {self.err}"
            elif time.monotonic() > end:
                self._fail(f"not so after {SOON_S} s")

    def _fail(self, why: str) -> NoReturn:
        self.send_signal(signal.SIGUSR1)
        self.wait(1)
        self.kill()
        raise AssertionError(f"{why}: {self.err}")

    def send_signal(self, number: int) -> None:
        """Send a signal if it is alive."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it if it is alive, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    @property
    def out(self) -> str:
        """What it has written to stdout."""
        return (self._said or self._read())[0]

    @property
    def err(self) -> str:
        """What it has written to stderr."""
        return (self._said or self._read())[1]

    def _read(self) -> list[str]:
        return [os.pread(file.fileno(), 1 << 24, 0).decode() for file in self._files]


def in_a_small_process(work: Callable[..., None], *args: object) -> None:
    """Call a function of a module in a new process, which forks a hundred others: each takes as long as it has memory.

    With torch and all tests in it a process takes 50 ms or more to fork, and one without takes 5 ms.
    """
    code = "import pickle, sys\nwork, args = pickle.load(sys.stdin.buffer)\nwork(*args)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((work, args)),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=LONGEST_S,
    )
    assert done.returncode == 0, done.stderr.decode()


def ckpt_forked(*args: object, environment: Mapping[str, str] | None = None) -> Forked:
    """Run ``ckpt`` in a process that is forked, as the program that it is."""

    return Forked(lambda: as_ckpt(*args), environment=environment)


def as_ckpt(*args: object) -> int:
    """Run ``ckpt`` as the program that this process is: in one that is forked."""
    from ckptsurgeon.__main__ import main

    sys.argv = ["ckpt", *map(str, args)]
    return main()


def forked_torchrun(
    words: Sequence[str], work: Callable[[], int], *, environment: Mapping[str, str] | None = None
) -> Forked:
    """Start a process that is torchrun with these words, but forks the processes that it starts: none has to import torch."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    def one() -> None:
        if code := work():
            sys.exit(code)

    def all_of_them() -> None:
        run.elastic_launch = lambda config, **_: lambda *_: elastic_launch(replace(config, start_method="fork"), one)()
        run.main([*words])

    return Forked(all_of_them, environment=environment)


def _live(work: Callable[[], int | None], environment: Mapping[str, str], files: Sequence[IO[bytes]]) -> None:
    code: int | None = 99
    try:
        gc.freeze()  # what is garbage here would close the numbers of other files
        given = dict(environment)
        os.environ.clear()
        os.environ.update(given)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((nothing, *(one.fileno() for one in files))):
            os.dup2(file, number)
        disconnect(nothing)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else bool(error.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def disconnect(nothing: int, but: int = -1) -> None:
    """Disconnect the sockets and pipes of the process that tests, but one: its servers wait until all have closed one.

    Their numbers stay taken: what a library that owns one of them does with it after a fork (Arrow closes the pipe of
    its signals, and opens another) would hit a file that was opened under this number since.
    """
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if number > 2 and number != but and os.readlink(f"/proc/self/fd/{number}").startswith(("socket:", "pipe:")):
                os.dup2(nothing, number)
