"""What the statistics of many tensors come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...tensors.info import TensorInfo

if TYPE_CHECKING:
    from .stats import Stats

__all__ = ["StatsSummary", "summary_of"]


@dataclass(frozen=True)
class StatsSummary:
    """Counts of elements over all tensors that were measured, ``elements`` of them; the others have no figures.

    ``unsound`` are the keys of the tensors that hold a NaN or an infinity.
    """

    measured: int
    not_measured: int
    elements: int
    nan: int
    inf: int
    zeros: int
    unsound: tuple[str, ...]


def summary_of(stats: Mapping[str, Stats | None], tensors: Mapping[str, TensorInfo]) -> StatsSummary:
    """Return what the statistics come to."""
    found = {key: one for key, one in stats.items() if one is not None}
    return StatsSummary(
        measured=len(found),
        not_measured=len(stats) - len(found),
        elements=sum(tensors[key].numel for key in found),
        nan=sum(one.nan for one in found.values()),
        inf=sum(one.inf for one in found.values()),
        zeros=sum(one.zeros for one in found.values()),
        unsound=tuple(key for key, one in found.items() if one.nan or one.inf),
    )
