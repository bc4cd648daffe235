"""What each of several processes does for an output, known before it begins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ProcessShare", "Sharing"]


@dataclass(frozen=True)
class ProcessShare:
    """What one process does; sizes are in bytes. ``seconds`` is None if nothing could be measured."""

    shards: int
    nbytes_read: int
    nbytes_written: int
    memory_nbytes: int
    seconds: float | None


@dataclass(frozen=True)
class Sharing:
    """What each of several processes does for an output.

    ``nbytes_disk`` are the bytes that the output takes on disk, beside one that it replaces. ``rate`` is how many bytes
    of the output one process has made in a second here, without writing them; None if nothing was measured.
    """

    processes: tuple[ProcessShare, ...]
    nbytes_disk: int
    rate: float | None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {"kind": "ckpt.sharing", "version": 1, **asdict(self), "processes": [asdict(p) for p in self.processes]}
