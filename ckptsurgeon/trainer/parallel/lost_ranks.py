"""The error for ranks that ended before the run was done, and the signs of it in torch's errors."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import CheckpointError
from ...util.text import escape

__all__ = ["LostRanksError", "describe_lost_rank", "is_communication_error"]


class LostRanksError(CheckpointError):
    """Raised if other processes ended before the run was done.

    ``ranks`` maps the rank of each ended process to the reason that it reported, '' for none.

    ``is_whole`` is true if the model of this process has the values after the last complete step. It is false if the
    GPU was in a step, and the step was aborted.
    """

    def __init__(self, ranks: Mapping[int, str], *, is_whole: bool = True) -> None:
        said = ", ".join(describe_lost_rank(rank, reason) for rank, reason in ranks.items())
        super().__init__(f"{said}.", hint="Read the messages of that process.")
        self.ranks, self.is_whole = ranks, is_whole


def describe_lost_rank(rank: int, reason: str) -> str:
    """Return a phrase for messages about a rank that ended; ``reason`` is the reason that the rank reported, or ''."""
    return f"rank {rank} ended{f' with {escape(reason, 300)}' if reason else ', without giving a reason'}"


def is_communication_error(error: Exception) -> bool:
    """Return whether the class and message of an error suggest that a rank has ended.

    Messages of gloo's errors, which are RuntimeErrors, contain the names of gloo's source files.
    """
    from torch import distributed

    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "Connection", "ProcessGroup")
    )
