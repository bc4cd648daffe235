"""Compares the values of tensors that both checkpoints have: their bytes and, only if these differ, their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...engine.prefetch import fetch_tensors, no_progress
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
    """Return a difference with the values of ``keys`` compared; their shapes are equal in both."""
    opaque = {key: _opaque(first, second, key) for key in keys if _opaque(first, second, key)}
    read = [key for key in keys if key not in opaque]
    fetch_tensors(((one, one[key]) for one in (first, second) for key in read), progress or no_progress)
    unequal = unequal_keys(first, second, read, progress)
    retyped, changed, close, same = [], [], [], []
    not_compared = dict[str, str]()
    for key in keys:
        pair, within = Pair(key, first[key], second[key]), False
        if key in unequal and (method := _codes(first, second, key)):
            pair = replace(pair, codes=method)
        elif key in unequal:
            numbers, within = measure(pair, first, second, tolerance)
            pair = replace(pair, numbers=numbers)
        if pair.first.dtype != pair.second.dtype:
            retyped.append(pair)
        elif key in opaque:
            not_compared[key] = opaque[key]
        elif key not in unequal:
            same.append(key)
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


def _codes(first: Checkpoint, second: Checkpoint, key: str) -> str:
    """Return the quantisation method of a tensor that holds codes in either checkpoint, "" for any other tensor."""
    found = (one.codes for one in (first, second) if not one.codes.has_numbers(key, one[key]))
    return next((codes.by_key[key].method for codes in found), "")


def _opaque(first: Checkpoint, second: Checkpoint, key: str) -> str:
    return first[key].opaque or second[key].opaque
