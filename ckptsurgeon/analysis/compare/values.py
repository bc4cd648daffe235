"""Compares values: first the bytes of tensors; if these differ, the numbers, decoded if they are quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...engine.prefetch import fetch_tensors, no_progress
from ...errors import FormatError, PlanError
from ...planning.operations.perform import Weights
from ...tensors.info import Decoded
from ...tensors.torch_quantisers import is_pickled, pickled_torchao
from ...util.text import escape
from .bytewise import unequal_keys
from .logical import EncodedOtherwise, by_name
from .results import Difference, Pair, Tolerance
from .tensor_difference import measure

__all__ = ["with_changed_codes", "with_decoded", "with_values"]


def with_values(
    found: Difference,
    first: Checkpoint,
    second: Checkpoint,
    keys: Sequence[str],
    *,
    tolerance: Tolerance,
    progress: Callable[[int, int], None] | None,
) -> Difference:
    """Return ``found``, a difference by headers, to which the differences in values of the tensors ``keys`` are added.

    Each of these tensors has the same shape in both checkpoints.
    """
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
    """Return the quantisation method if the tensor ``key`` of either checkpoint holds quantised codes; else ''."""
    found = (one.codes for one in (first, second) if not one.codes.has_numbers(key, one[key]))
    return next((codes.by_key[key].method for codes in found), "")


def _opaque(first: Checkpoint, second: Checkpoint, key: str) -> str:
    return first[key].opaque or second[key].opaque


def _are_pickled(pair: Pair, first: Checkpoint, second: Checkpoint) -> bool:
    """Return whether both checkpoints store a weight as the same kind of quantised tensor in a pickle.

    Both tensors have the same class of torchao, or are torch's own quantised tensors with the same dtype and scale.
    """
    here, there = (one.get(pair.key) for one in (first, second))
    if here is None or there is None or not (is_pickled(here) and is_pickled(there)):
        return False
    kinds = [(pickled_torchao(info)[0], "" if pickled_torchao(info)[0] else info.dtype) for info in (here, there)]
    facts = [one.made.facts for one in (pair.first, pair.second) if isinstance(one.made, Decoded)]
    return len({*kinds}) == 1 and (bool(kinds[0][0]) or len({*facts}) == 1)


def with_decoded(
    found: Difference,
    first: Checkpoint,
    second: Checkpoint,
    otherwise: EncodedOtherwise,
    keys: Iterable[str],
    tolerance: Tolerance,
) -> Difference:
    """Return ``found`` with the distances of those weights in ``keys`` that two checkpoints encode differently.

    ``otherwise`` has all weights that they encode differently. If the user gave a tolerance, weights within it are in
    ``close``, the others in ``decoded``. Pickled tensors of torch or torchao count as identical if their values are
    equal; their bytes are not compared.
    """
    chosen = [key for key in keys if key in otherwise.pairs]
    refused = {key: otherwise.refused[key] for key in chosen if key in otherwise.refused}
    pairs = [otherwise.pairs[key] for key in chosen if key not in refused]
    fetch_tensors((source, info) for pair in pairs for source, info in ((first, pair.first), (second, pair.second)))
    decoded, close, same = list[Pair](), list[Pair](), list[str]()
    for pair in pairs:
        try:
            numbers, within = measure(pair, first, second, tolerance)
        except FormatError as error:
            refused[pair.key] = error.message.rstrip(".")
            continue
        if numbers is not None and not numbers.differing and _are_pickled(pair, first, second):
            same.append(pair.key)
        else:
            (close if within and tolerance != Tolerance() else decoded).append(replace(pair, numbers=numbers))
    return replace(
        found,
        identical=found.identical + len(same),
        same=(*found.same, *same),
        decoded=(*found.decoded, *decoded),
        close=(*found.close, *close),
        not_compared={**found.not_compared, **refused},
    )


def with_changed_codes(
    found: Difference, first: Checkpoint, second: Checkpoint, weights: Sequence[Weights], tolerance: Tolerance
) -> Difference:
    """Return ``found`` with the distances of the quantised weights whose codes or scales differ.

    ``weights`` has a function for each checkpoint that gives the decoded weight of a quantised tensor. A weight that
    cannot be decoded has no distance; there is a note if a scale is the reason. If the user gave a tolerance, weights
    within it are in ``close``, together with their codes and scales.
    """
    changed = {pair.key for pair in (*found.changed, *found.close)}
    decoded, close, notes = list[Pair](), list[Pair](), list[str]()
    for pair in _changed(first, second, changed, weights):
        try:
            numbers, within = measure(pair, first, second, tolerance)
        except FormatError as error:
            notes.append(
                f"{escape(pair.key)} is compared only by its codes, because it cannot be decoded: "
                f"{error.message.rstrip('.')}"
            )
        else:
            (close if within and tolerance != Tolerance() else decoded).append(replace(pair, numbers=numbers))
    names = by_name(first)
    parts = {key for pair in close for key in names[pair.key].keys}
    return replace(
        found,
        decoded=(*found.decoded, *decoded),
        changed=tuple(pair for pair in found.changed if pair.key not in parts),
        close=(*found.close, *(pair for pair in found.changed if pair.key in parts), *close),
        notes=(*found.notes, *notes),
    )


def _changed(first: Checkpoint, second: Checkpoint, keys: set[str], weights: Sequence[Weights]) -> Iterator[Pair]:
    here, there = by_name(first), by_name(second)
    for name, one in here.items():
        if name in there and not keys.isdisjoint(one.keys):
            try:
                a, b = (give(coded.codes) for coded, give in zip((one, there[name]), weights, strict=True))
            except PlanError:  # the weight cannot be decoded: ``found.changed`` has its stored tensors
                continue
            if a is not None and b is not None:
                yield Pair(name, a.info, b.info, encodings=(one.method, there[name].method))
