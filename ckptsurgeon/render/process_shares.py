"""Shows how much of the work each process does, if there are several."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ..planning.plan.process_shares import UNEVEN, ProcessShare, Sharing
from ..util.text import human_bytes
from .columns import Columns, Hanging

__all__ = ["sharing_view"]

SHOWN = 8
"""The largest number of processes that are shown without -v: the processes that write the most bytes."""


def sharing_view(sharing: Sharing, *, every: bool = False) -> RenderableType:
    """Return a table of the processes, then the disk space, and how the times were computed.

    The processes are in the order of their numbers.
    """
    order = sorted(enumerate(sharing.processes), key=lambda one: -one[1].nbytes_written)
    shown = sorted((order if every else order[:SHOWN]), key=lambda one: one[0])
    heads = ("process", "shards", "read", "written", "memory", "time")
    rows: list[list[str | Text]] = [[Text(head, "dim") for head in heads]]
    rows += [_row(number, share) for number, share in shown]
    left = len(order) - len(shown)
    more = [Text(f"  and {left} other processes, which write at most as much (-v shows all)", "dim")] if left else []
    disk = f"  on disk {human_bytes(sharing.nbytes_disk)}, in addition to an output that is replaced"
    if sharing.rate is None:
        time = "  time: not measured, since the sources are remote or values are initialised"
    else:
        time = (
            f"  time: computed from {human_bytes(int(sharing.rate))}/s, measured here with one process, without writing"
        )
    last = [disk, time, *_advice(sharing)]
    return Group(
        Columns(rows, right=tuple(range(len(heads)))), *more, *(Hanging(Text("  "), line.strip()) for line in last)
    )


def _advice(sharing: Sharing) -> list[str]:
    """Return a list with a line on how the processes could share the work more evenly; [] if they share it evenly."""
    if sharing.unevenness <= UNEVEN:
        return []
    said = f"  shared unevenly: a process writes {sharing.unevenness:.1f} times the mean"
    if not sharing.is_folder:
        return [f"{said}; a single file is written by one process: give a folder, as in -o FOLDER/"]
    if not sharing.shard_size:
        return [f"{said}; no --max-shard-size helps, because a tensor is never divided: use fewer processes"]
    return [f"{said}; with --max-shard-size {sharing.shard_size} at most {sharing.shard_unevenness:.1f} times"]


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
