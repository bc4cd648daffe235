"""The work of each of several processes that make one output, estimated before they begin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ProcessShare", "Sharing"]


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
    them; None if it was not measured.
    """

    processes: tuple[ProcessShare, ...]
    nbytes_disk: int
    rate: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        return {"kind": "ckpt.sharing", "version": 1, **asdict(self), "processes": [asdict(p) for p in self.processes]}
