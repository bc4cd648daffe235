"""Reads facts about the ``torchrun`` job of this process from the environment: rank, processes, cores, restarts.

https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["alone", "cores_of_process", "is_started_again", "number_of_processes", "rank_of_process"]

OF_THE_JOB = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip
"""The variables that make a program take itself for one of several processes."""


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

    Otherwise such a program, for example the one that evaluates a model, would wait for the other processes.
    """
    hidden = {name: os.environ.pop(name) for name in OF_THE_JOB if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
