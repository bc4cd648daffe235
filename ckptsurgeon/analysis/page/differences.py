"""How two checkpoints differ, as columns of a page whose rows are the tensors of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...tensors.info import TensorInfo
from ..compare.difference import Difference, Numbers, Pair
from .figures import exact, figure
from .table import Table

__all__ = ["STATES", "difference_of", "rows_of_both"]

STATES = ("same", "close", "changed", "retyped", "reshaped", "renamed", "added", "removed", "not compared")


def rows_of_both(found: Difference, first: Mapping[str, TensorInfo], second: Mapping[str, TensorInfo]) -> set[str]:
    """Return the keys that a page shows: those of the second, and those that only the first has under any name."""
    return set(second) | (set(first) - found.renamed.keys())


def difference_of(found: Difference, first: Mapping[str, TensorInfo], table: Table) -> dict[str, Any]:
    """Return the state of each row, and what there is to say of those that differ.

    A tensor that was renamed stands under its new name. ``was`` has what it was called and what it was where that is
    another; ``numbers`` how far its values are apart.
    """
    states = _states(found)
    old = {new: key for key, new in found.renamed.items()}
    return {
        "states": list(STATES),
        "state": [STATES.index(states.get(key, "same")) for key in table.places],
        "values": found.values,
        "was": [[table.places[new], key] for new, key in old.items()],
        "kind": [[table.places[pair.key], table.kind(pair.first)] for pair in (*found.reshaped, *found.retyped)],
        "numbers": [[table.places[pair.key], *_figures(pair.numbers)] for pair in _pairs(found) if pair.numbers],
        "why": [[table.places[key], why] for key, why in found.not_compared.items()],
        "rules": list(found.rules),
    }


def _pairs(found: Difference) -> Iterable[Pair]:
    return (*found.changed, *found.close, *found.retyped, *found.reshaped)


def _states(found: Difference) -> dict[str, str]:
    named = {
        "changed": [pair.key for pair in found.changed],
        "close": [pair.key for pair in found.close],
        "retyped": [pair.key for pair in found.retyped],
        "reshaped": [pair.key for pair in found.reshaped],
        "renamed": found.renamed.values(),
        "added": found.added,
        "removed": found.removed,
        "not compared": found.not_compared,
    }
    return {key: state for state, keys in named.items() for key in keys}


def _figures(numbers: Numbers) -> list[float | int | None]:
    """Return differing, max abs, relative, cosine, NaN and infinities of one of the two."""
    distances = (figure(numbers.max_abs), figure(numbers.relative), exact(numbers.cosine))
    return [numbers.differing, *distances, numbers.nan, numbers.inf]
