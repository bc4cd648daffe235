"""What it takes to carry a plan out, known before it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """Bytes to read at most, in so many ``passes`` over the tensor that takes most, and to write; bytes of memory.

    ``memory_nbytes`` is what computing takes on this machine, beside the interpreter.
    """

    passes: int
    nbytes_read: int
    nbytes_written: int
    memory_nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Return them as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Costs | None:
        """Return what plain data spells, None for none; raises TypeError, ValueError or KeyError."""
        if data is None:
            return None
        return Costs(*(int(data[name]) for name in ("passes", "nbytes_read", "nbytes_written", "memory_nbytes")))
