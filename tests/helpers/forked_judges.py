"""The processes of ``ckpt search --task``, forked from the one that tests: none has to import torch, which takes 1.3 s."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from .forked import disconnect

__all__ = ["ForkedJudge"]


class ForkedJudge:
    """A child as ``subprocess.Popen`` would start it for ``ckptsurgeon.api.search.task``, in a group of its own."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        requests, ours = os.pipe()
        ours_too, complaints = os.pipe()
        *_, config, answers = command
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: none that waits here holds a lock
            self.pid = os.fork()
        if not self.pid:
            assert [int(answers)] == [*pass_fds]
            _judge(config, int(answers), requests, complaints)
        with suppress(OSError):  # it has done so itself, and ended
            os.setpgid(self.pid, self.pid)
        os.close(requests)
        os.close(complaints)
        self.stdin, self.stderr = open(ours, "wb"), open(ours_too, "rb")  # noqa: SIM115
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code as subprocess has it, None if the process is alive."""
        return self._ended(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        code = self._ended(0)
        assert code is not None
        return code

    def _ended(self, options: int) -> int | None:
        with self._lock:
            if self._code is None:
                pid, status = os.waitpid(self.pid, options)
                self._code = os.waitstatus_to_exitcode(status) if pid else None
            return self._code


def _judge(config: str, answers: int, requests: int, complaints: int) -> NoReturn:
    code = 1
    try:
        gc.freeze()  # what is garbage here would close the numbers of other files
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, file in enumerate((requests, nothing, complaints)):
            os.dup2(file, number)
        disconnect(nothing, but=answers)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
        from ckptsurgeon.trainer.run.judge_models import main

        main(config, answers)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
