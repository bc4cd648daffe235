"""Reads facts about the ``torchrun`` job of this process from the environment: rank, processes, cores, restarts.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

__all__ = ["alone", "cores_of_process", "is_started_again", "number_of_processes", "rank_of_process"]

OF_THE_JOB = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE",
)  # fmt: skip
"""The variables that make a program take itself for one of several processes, or write where they do."""
THREADS = "OMP_NUM_THREADS"
"""``torchrun`` sets this to 1 if it starts several processes on a machine and the user has not set it."""


def rank_of_process() -> int:
    """Return the rank of this process in its ``torchrun`` job; 0 if it runs alone."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() and number_of_processes() > 1 else 0


def number_of_processes() -> int:
    """Return the number of processes in this ``torchrun`` job; 1 if this process runs alone."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and os.environ.get("RANK", "").isdecimal() else 1


def cores_of_process() -> int:
    """Return how many cores this process may use: at most its share of the cores of the machine.

    The share is the number of cores divided by the number of the job's processes on this machine. But if the launcher
    has bound each process to separate cores, as Slurm does, the process may use all of these.
    """
    bound = len(os.sched_getaffinity(0))
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = int(beside) if number_of_processes() > 1 and beside.isdecimal() else 1
    return max(1, min(bound, (os.cpu_count() or bound) // max(1, processes)))


def is_started_again() -> bool:
    """Return whether ``torchrun`` has restarted the processes after one of them failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


@contextmanager
def alone() -> Iterator[None]:
    """Hide the ``torchrun`` job during the block: from this process, and from the programs that it starts.

    Otherwise such a program, for example the one that evaluates a model, would wait for the other processes. If
    ``torchrun`` has limited each process to one thread, the programs may nevertheless use all cores of this process.
    The number of restarts stays, because ``is_started_again`` reads it.
    """
    names = (*OF_THE_JOB, THREADS) if _is_limited() else OF_THE_JOB
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        with _all_threads_of_torch() if THREADS in hidden else nullcontext():
            yield
    finally:
        os.environ.update(hidden)


def _is_limited() -> bool:
    """Return whether ``torchrun`` has probably limited this process to one thread."""
    several = os.environ.get("LOCAL_WORLD_SIZE", "") not in ("", "1")
    return several and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get(THREADS) == "1"


@contextmanager
def _all_threads_of_torch() -> Iterator[None]:
    """Let torch, which read the limit when it was imported, compute on all cores of this process during the block."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(cores_of_process())
    try:
        yield
    finally:
        torch.set_num_threads(before)
