"""Measures commands side by side: in turn, several rounds, medians and ratios. Never imports torch itself.

A process's time is its wall time from start to end; its memory the maximum resident set the kernel saw, over that of
``python -c pass`` where so said. What is measured against what runs in the same round, so that a machine that slows
down slows both.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["MB", "Measured", "Row", "ckpt", "python", "rounds", "run"]

MB = 1024
"""Kilobytes, as the kernel counts memory."""
ROUNDS = 5


@dataclass
class Measured:
    """What was seen of one command: seconds, those of processors, and peak kilobytes, one of each a round."""

    seconds: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)
    peak_kb: list[int] = field(default_factory=list)

    @property
    def time(self) -> float:
        return statistics.median(self.seconds)

    @property
    def processor(self) -> float:
        return statistics.median(self.processor_s)

    @property
    def peak(self) -> float:
        return statistics.median(self.peak_kb)


@dataclass(frozen=True)
class Row:
    """One line of the table: a ratio or a size, and what it may be."""

    what: str
    value: float
    bound: float
    unit: str = "x"
    seen: str = ""

    @property
    def held(self) -> bool:
        return self.value <= self.bound


def ckpt(*args: str) -> list[str]:
    """The command that runs ours."""
    return [sys.executable, "-m", "ckptsurgeon", *args]


def python(code: str) -> list[str]:
    """The command that runs some Python."""
    return [sys.executable, "-c", code]


def run(command: Sequence[str], folder: str) -> tuple[float, int, float]:
    """Run a command in a folder; returns (seconds, peak kilobytes, seconds of processors). Fails when it does.

    Modules are compiled once, in the folder, as those of an installed package are: a checkout may have none compiled.
    OpenBLAS chooses its kernels itself, whatever the environment says: with others, results are the same on many machines.
    """
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            for name in ("PYTHONDONTWRITEBYTECODE", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
                os.environ.pop(name, None)
            os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(folder, "pycache")
            os.execvp(command[0], list(command))
        finally:
            os._exit(127)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - began
    if status:
        raise SystemExit(f"failed ({status}): {' '.join(command)[:300]}")
    return took, usage.ru_maxrss, usage.ru_utime + usage.ru_stime


def rounds(
    commands: Mapping[str, Sequence[str]],
    folder: str,
    *,
    before: Callable[[], None] = lambda: None,
    number: int = ROUNDS,
) -> dict[str, Measured]:
    """Run every command once a round, in turn; ``before`` runs, unmeasured, before each.

    The first round is a warm-up, unless ``number`` is 0: then it is the only one.
    """
    seen = {name: Measured() for name in commands}
    for turn in range(number + 1):
        for name, command in commands.items():
            before()
            seconds, peak, processor_s = run(command, folder)
            if turn or not number:
                seen[name].processor_s.append(processor_s)
                seen[name].seconds.append(seconds)
                seen[name].peak_kb.append(peak)
    return seen
