"""Describes the file that replaces a shard deleted by ``--consume``: it keeps the shard's header and small tensors.

If the run is interrupted, this file is enough for the same command to make the same plan again. Its name is the name of
the shard with the suffix ``.consumed``, so that other programs find that the shard is missing. The kept bytes are at
the same offsets as in the shard, with holes between them. Then follow a JSON document, its length (8 bytes, little
endian), and ``ckptcons``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..json_text import read_json

__all__ = ["CONSUMED", "MAGIC", "ConsumedShard", "consumed_shard"]

CONSUMED = ".consumed"
"""The suffix of the file that replaces a consumed shard."""
MAGIC = b"ckptcons"
MOST_BYTES = 64 << 20
"""The maximum size in bytes of the JSON document at the end of the file."""


class ConsumedShard(NamedTuple):
    """A shard that was deleted; its size in bytes, its times and its inode identify it in a later run.

    ``kept`` are the (begin, end) byte ranges that are kept, sorted; the first range contains the header. ``output`` is
    the path of the output that now has the values.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    kept: Sequence[tuple[int, int]]
    output: str

    def has(self, offset: int, nbytes: int) -> bool:
        """Return whether the ``nbytes`` bytes from ``offset`` on are among the kept bytes."""
        place = bisect_right(self.kept, offset, key=lambda one: one[0]) - 1
        return not nbytes or (place >= 0 and offset + nbytes <= self.kept[place][1])


def consumed_shard(size: int, read: Callable[[int, int], bytes]) -> ConsumedShard:
    """Return the shard that a ``.consumed`` file of ``size`` bytes describes.

    ``read(offset, nbytes)`` returns bytes of the file. Raises LookupError, TypeError or ValueError if the file does not
    describe a shard.
    """
    tail = read(size - 16, 16) if size >= 16 else b""
    length = int.from_bytes(tail[:8], "little")
    if tail[8:] != MAGIC or length > min(MOST_BYTES, size - 16):
        raise ValueError("the file does not end as a .consumed file must")
    row: Any = read_json(read(size - 16 - length, length).decode())
    numbers = (row["size"], row["mtime_ns"], row["ctime_ns"], row["inode"])
    kept = [(begin, end) for begin, end in row["kept"]]
    ends = [number for pair in kept for number in pair]
    if any(type(number) is not int or number < 0 for number in (*numbers, *ends)) or ends != sorted(ends):
        raise ValueError("a number in the .consumed file is not valid")
    if ends and ends[-1] > size - 16 - length:
        raise ValueError("the .consumed file is too short for the byte ranges that it lists")
    return ConsumedShard(*numbers, kept, str(row["output"]))
