"""What looking at one file may cost, all that lies in it included."""

from __future__ import annotations

from ....formats.base import limits

__all__ = ["Budget", "SpentError"]


class SpentError(Exception):
    """A bound is reached; the text says at what."""


class Budget:
    """What is left for one file."""

    def __init__(self) -> None:
        self.ops = limits.SCAN_OPS
        self.bytes = limits.SCAN_BYTES
        self.unpacked = limits.SCAN_UNPACKED
        self.searched = limits.SCAN_SEARCHED
        self.parts = limits.SCAN_PARTS

    @staticmethod
    def spent(what: str) -> SpentError:
        """Return the error for a file in which there is too much of something."""
        return SpentError(f"it holds {what}, more than are looked at")

    def take(self, what: str, number: int) -> None:
        """Spend some of a bound; raises SpentError where there is too little left."""
        left = getattr(self, what) - number
        if left < 0:
            raise self.spent(_WORDS[what])
        setattr(self, what, left)


_WORDS = {
    "ops": f"pickles of over {limits.SCAN_OPS} instructions",
    "bytes": f"over {limits.SCAN_BYTES} bytes of pickles",
    "unpacked": f"over {limits.SCAN_UNPACKED} bytes when unpacked",
    "searched": f"over {limits.SCAN_SEARCHED} bytes to search",
    "parts": f"over {limits.SCAN_PARTS} records",
}
