"""The work of each of several processes that make one output, estimated before they begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["UNEVEN", "ProcessShare", "Sharing", "unevenness"]


def unevenness(sizes: Sequence[int]) -> float:
    """Return the largest of some sizes, divided by their mean; 1 if all are 0."""
    return max(sizes) * len(sizes) / sum(sizes) if sum(sizes) else 1.0


UNEVEN = 1.25
"""Processes share work unevenly if the largest share is more than this multiple of the mean."""


@dataclass(frozen=True)
class ProcessShare:
    """The work of one process; sizes are in bytes. ``seconds`` is None if no speed could be measured."""

    shards: int
    nbytes_read: int
    nbytes_written: int
    memory_nbytes: int
    seconds: float | None


@dataclass(frozen=True)
class Sharing:
    """The work of each of several processes that make one output.

    ``nbytes_disk`` is the space in bytes that the output needs on disk, in addition to an output that it replaces.
    ``rate`` is the number of bytes of the output that one process computes per second on this machine, without writing
    them; None if it was not measured. If the processes write very different numbers of bytes, and other
    shards would help, ``shard_size`` is a better value of ``--max-shard-size``, and ``shard_unevenness`` the unevenness
    with it. ``is_folder`` is False if the output is a single file, which one process writes.
    """

    processes: tuple[ProcessShare, ...]
    nbytes_disk: int
    rate: float | None
    shard_size: str = ""
    shard_unevenness: float = 1.0
    is_folder: bool = True

    @property
    def unevenness(self) -> float:
        """The bytes of the process that writes most, divided by the mean of all processes."""
        return unevenness([one.nbytes_written for one in self.processes])

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        return {"kind": "ckpt.sharing", "version": 1, **asdict(self), "processes": [asdict(p) for p in self.processes]}
