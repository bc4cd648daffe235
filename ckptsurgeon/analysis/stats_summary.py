"""Measures the stored tensors and the decoded weights of a checkpoint, and sums up their statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..checkpoint.checkpoint import Checkpoint
from ..errors import FormatError, PlanError
from ..tensors.info import TensorInfo
from ..tensors.quantised.encoding import QuantisedTensors

if TYPE_CHECKING:
    from ..planning.operations.perform import Weights
    from .stats import Stats

__all__ = ["DecodedStats", "StatsSummary", "decoded_stats", "stored_stats", "summary_of"]


@dataclass(frozen=True)
class StatsSummary:
    """Totals over all tensors with statistics; ``elements``, ``nan``, ``inf`` and ``zeros`` are numbers of elements.

    ``measured`` and ``not_measured`` are the numbers of stored tensors with and without statistics; ``decoded`` is the
    number of quantised weights that were decoded and measured. ``unsound`` are the keys of tensors that contain a NaN
    or an infinity, and the names of quantised weights that contain one or cannot be decoded because of one.
    """

    measured: int
    decoded: int
    not_measured: int
    elements: int
    nan: int
    inf: int
    zeros: int
    unsound: tuple[str, ...]


@dataclass
class DecodedStats:
    """Statistics of dequantised weights (``found``), and why other weights have none (``refused``), by logical name.

    ``damaged`` are the names in ``refused`` whose stored values are the reason, such as a NaN in a scale. ``elements``
    is the number of elements of the weights in ``found``; tied weights count once.
    """

    found: dict[str, Stats] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    elements: int = 0


def summary_of(
    stats: Mapping[str, Stats | None],
    tensors: Mapping[str, TensorInfo],
    ties: Collection[str],
    codes: QuantisedTensors,
    decoded: DecodedStats,
) -> StatsSummary:
    """Return totals over the statistics of tensors and decoded weights; tied tensors count once.

    A tensor whose statistics are None is not measured. ``ties`` are the keys that are tied to another key.
    """
    own = {key: one for key, one in stats.items() if key not in ties}
    found = {key: one for key, one in own.items() if one is not None}
    tied = {one.name for one in codes.tensors if one.codes in ties}
    weights = [one for name, one in decoded.found.items() if name not in tied]
    every = [*found.values(), *weights]
    return StatsSummary(
        measured=len(found),
        decoded=len(weights),
        not_measured=len(own) - len(found),
        elements=sum(tensors[key].numel for key in found) + decoded.elements,
        nan=sum(one.nan for one in every),
        inf=sum(one.inf for one in every),
        zeros=sum(one.zeros for one in every),
        unsound=tuple(_unsound(found, codes, decoded)),
    )


def _unsound(stored: Mapping[str, Stats], codes: QuantisedTensors, decoded: DecodedStats) -> Iterator[str]:
    """Yield the keys of stored tensors, and the names of quantised weights, that contain a NaN or an infinity.

    The names include weights that cannot be decoded because of stored values, unless one of their parts is among the
    keys.
    """
    found = [key for key, one in stored.items() if one.nan or one.inf]
    yield from found
    yield from (name for name, one in decoded.found.items() if one.nan or one.inf)
    parts = {one.name: one.keys for one in codes.tensors}
    yield from (name for name in decoded.damaged if not {*found} & {*parts[name]})


def decoded_stats(
    checkpoint: Checkpoint, codes: QuantisedTensors, weights: Weights, ties: Collection[str]
) -> DecodedStats:
    """Dequantise the quantised tensors, and return the statistics of the results.

    ``weights`` is the function that dequantises. ``ties`` are the keys that are tied to another key.
    """
    from ..engine.prefetch import fetch_keys
    from .stats import stats_of

    made = DecodedStats()
    fetch_keys(checkpoint, [key for one in codes.tensors for key in one.keys])
    for one in codes.tensors:
        try:
            weight = weights(one.codes or one.keys[0])
            stats = stats_of(checkpoint, weight.info) if weight is not None else None
        except (PlanError, FormatError) as error:
            made.refused[one.name] = error.message.rstrip(".")
            made.damaged += [one.name] if isinstance(error, FormatError) else []
        else:
            if weight is not None and stats is not None:
                made.found[one.name] = stats
                made.elements += weight.info.numel if one.codes not in ties else 0
    return made


def stored_stats(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, Stats | None]:
    """Return the statistics of stored tensors, by key; None for codes, and for tensors that are not numbers."""
    from ..engine.prefetch import fetch_keys
    from .stats import stats_of

    numbers = [key for key, info in tensors.items() if checkpoint.codes.has_numbers(key, info)]
    fetch_keys(checkpoint, numbers)
    found = {key: stats_of(checkpoint, tensors[key]) for key in numbers}
    return {key: found.get(key) for key in tensors}
