"""What is left of a shard that a run with ``--consume`` has deleted: its header and its small tensors.

The run may be interrupted, and the same command then makes the same plan again, from this file. It is called as the
shard was, with ``.consumed`` behind it, has the bytes that are kept in their places, and holes between them. Behind
these are a JSON document, its length (8 bytes, little endian) and ``ckptcons``. Other programs find the shard missing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..json_text import read_json

__all__ = ["CONSUMED", "MAGIC", "ConsumedShard", "consumed_shard"]

CONSUMED = ".consumed"
"""The suffix of what is left of a shard."""
MAGIC = b"ckptcons"
MOST_BYTES = 64 << 20
"""The largest JSON document that is read."""


class ConsumedShard(NamedTuple):
    """A shard that was deleted: its size in bytes, and its times and inode, by which a run knows that it is the same.

    ``kept`` are the (begin, end) byte ranges that are kept, in order, the first of them the header. ``output`` is the
    path of the output that has the values.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    kept: Sequence[tuple[int, int]]
    output: str

    def has(self, offset: int, nbytes: int) -> bool:
        """Return whether a range of bytes is kept."""
        place = bisect_right(self.kept, offset, key=lambda one: one[0]) - 1
        return not nbytes or (place >= 0 and offset + nbytes <= self.kept[place][1])


def consumed_shard(size: int, read: Callable[[int, int], bytes]) -> ConsumedShard:
    """Return the shard that a file of ``size`` bytes describes; raises LookupError, TypeError or ValueError if none.

    ``read`` gets an offset and a number of bytes, and returns these.
    """
    tail = read(size - 16, 16) if size >= 16 else b""
    length = int.from_bytes(tail[:8], "little")
    if tail[8:] != MAGIC or length > min(MOST_BYTES, size - 16):
        raise ValueError("it does not end as such a file does")
    row: Any = read_json(read(size - 16 - length, length).decode())
    numbers = (row["size"], row["mtime_ns"], row["ctime_ns"], row["inode"])
    kept = [(begin, end) for begin, end in row["kept"]]
    ends = [number for pair in kept for number in pair]
    if any(type(number) is not int or number < 0 for number in (*numbers, *ends)) or ends != sorted(ends):
        raise ValueError("one of its numbers is not valid")
    if ends and ends[-1] > size - 16 - length:
        raise ValueError("it is shorter than the bytes that it keeps")
    return ConsumedShard(*numbers, kept, str(row["output"]))
