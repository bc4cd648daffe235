"""Shows how much of the work each process does, if there are several."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..planning.plan.process_shares import ProcessShare, Sharing
from ..util.text import human_bytes
from .columns import Columns

__all__ = ["sharing_view"]

SHOWN = 8
"""The largest number of processes that are shown without -v: those that write the most bytes."""


def sharing_view(sharing: Sharing, *, every: bool = False) -> RenderableType:
    """Return a table of the processes, then the disk space, and how the times were computed.

    The table begins with the process that writes the most bytes.
    """
    order = sorted(enumerate(sharing.processes), key=lambda one: -one[1].nbytes_written)
    shown = order if every else order[:SHOWN]
    heads = ("process", "shards", "read", "written", "memory", "time")
    rows: list[list[str | Text]] = [[Text(head, "dim") for head in heads]]
    rows += [_row(number, share) for number, share in shown]
    left = len(order) - len(shown)
    more = [Text(f"  and {left} others, none of which writes more than these (-v shows all)", "dim")] if left else []
    disk = f"  on disk {human_bytes(sharing.nbytes_disk)}, in addition to an output that is replaced"
    if sharing.rate is None:
        time = "  time: not measured, since the sources are remote or values are initialised"
    else:
        time = (
            f"  time: computed from {human_bytes(int(sharing.rate))}/s, measured here with one process, without writing"
        )
    last = [disk, time, *_advice(sharing)]
    return Group(Columns(rows, right=tuple(range(len(heads)))), *more, *map(Text, last))


def _advice(sharing: Sharing) -> list[str]:
    """Return a line on shards that the processes would share more evenly, or nothing."""
    if not sharing.shard_size:
        return []
    size, first, then = sharing.shard_size, f"{sharing.unevenness:.1f}", f"{sharing.shard_unevenness:.1f}"
    return [
        f"  shared unevenly: a process writes {first} times the mean; with --max-shard-size {size} at most {then} times"
    ]


def _row(number: int, share: ProcessShare) -> list[str | Text]:
    sizes = (share.nbytes_read, share.nbytes_written, share.memory_nbytes)
    return [str(number), str(share.shards), *map(human_bytes, sizes), _duration(share.seconds)]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
