"""Compares the values of tensors that two checkpoints share: bytes first, and numbers only where bytes differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..checkpoint import Checkpoint
from .bytewise import unequal_keys
from .difference import Difference, Pair, Tolerance
from .measure import measure

__all__ = ["with_values"]


def with_values(
    found: Difference,
    first: Checkpoint,
    second: Checkpoint,
    keys: Sequence[str],
    *,
    tolerance: Tolerance,
    progress: Callable[[int, int], None] | None,
) -> Difference:
    """Return a difference with the values of ``keys``, which have one shape in both, compared."""
    not_compared = {key: _opaque(first, second, key) for key in keys if _opaque(first, second, key)}
    readable = [key for key in keys if key not in not_compared]
    unequal = unequal_keys(first, second, readable, progress)
    retyped, changed, close, same = [], [], [], []
    for key in readable:
        if key not in unequal:
            same.append(key)
            continue
        pair = Pair(key, first[key], second[key])
        numbers, within = measure(pair, first, second, tolerance)
        pair = replace(pair, numbers=numbers)
        if pair.first.dtype != pair.second.dtype:
            retyped.append(pair)
        elif within:
            close.append(pair)
        else:
            changed.append(pair)
    return replace(
        found,
        retyped=tuple(retyped),
        changed=tuple(changed),
        close=tuple(close),
        identical=len(same),
        same=tuple(same),
        not_compared=not_compared,
    )


def _opaque(first: Checkpoint, second: Checkpoint, key: str) -> str:
    return first[key].opaque or second[key].opaque
