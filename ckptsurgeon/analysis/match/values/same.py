"""Pairs the tensors of two checkpoints that have the same values, even if several tensors have equal values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ....tensors.dtypes import DTYPES
from ...compare.renames import paired
from ..operations.other_shapes import flat_shape
from ..operations.steps import JOIN, ORDER, Change, Step, free_name, in_place
from .compared_tensors import Pairs, Side
from .line_fingerprints import sample_of
from .relations import WHY
from .rounded import Projections, numbered, projected_sample

__all__ = ["pair_constants", "pair_equals", "reshapes"]

Sample = tuple[object, ...]


def pair_equals(pairs: Pairs, expected: Mapping[str, str]) -> None:
    """Add pairs of tensors with equal samples to ``pairs.names``; add constant tensors to ``pairs.doubtful``.

    If several tensors have the same sample, their names decide; ``expected`` are the pairs that names show. If the
    destination has a tensor more often than the source, a change that copies the tensor is added to ``pairs.changes``.
    """
    here, there = _rounded_samples(pairs) if pairs.is_rounded else (_samples(pairs.here), _samples(pairs.there))
    for sample, old in here.items():
        new = there.get(sample, [])
        if sample[0]:
            pairs.doubtful += [(old, new)] if new else []
        else:
            found = _by_names(old, new, expected)
            pairs.changes += _copied(found, new, pairs.here.checkpoint) if len(old) < len(new) else []
            pairs.names.update(found)


def _samples(side: Side) -> dict[Sample, list[str]]:
    """Return {sample: keys of tensors with this sample}.

    The first item of a sample is true if all elements of the tensors are equal.
    """
    found: dict[Sample, list[str]] = defaultdict(list)
    for key, info in side.tensors.items():
        digest, is_constant = sample_of(side.checkpoint, info, side.dtype)
        shape = (info.numel,) if is_constant else flat_shape(info.shape)
        found[is_constant, digest, shape, DTYPES[info.dtype].is_floating].append(key)
    return found


def _rounded_samples(pairs: Pairs) -> tuple[dict[Sample, list[str]], dict[Sample, list[str]]]:
    """Return {sample: keys} of both checkpoints; tensors that differ only by rounding have the same sample."""
    found: tuple[dict[Sample, list[str]], dict[Sample, list[str]]] = defaultdict(list), defaultdict(list)
    lines: dict[Sample, tuple[list[tuple[str, Projections]], ...]] = defaultdict(lambda: ([], []))
    for number, side in enumerate((pairs.here, pairs.there)):
        for sample, keys in _samples(side).items():
            is_constant, _, shape, is_floating = sample
            if is_constant or not is_floating:
                found[number][sample] += keys
                continue
            for key in keys:
                lines[shape, is_floating][number].append((key, projected_sample(side.checkpoint, side.tensors[key])))
    for (shape, is_floating), sides in lines.items():
        if sides[0] and sides[1]:
            stacked = [np.vstack([projections for _, projections in some]) for some in sides]
            for number, ids in enumerate(numbered(stacked[0], stacked[1])):
                for (key, _), one in zip(sides[number], ids.tolist(), strict=True):
                    found[number][False, one, shape, is_floating].append(key)
    return found


def _copied(pairs: dict[str, str], new: Sequence[str], taken: Mapping[str, object]) -> Iterator[Change]:
    """Yield a change that copies a source tensor to each key of ``new`` without a partner; nothing without ``pairs``.

    All tensors in question have the same values. The first source tensor of ``pairs`` is copied, also to its own
    partner, and is removed from ``pairs``. ``taken`` has the source's keys, which no result may have.
    """
    if not pairs:
        return
    one = next(iter(pairs))
    others = {*pairs.values()} - {pairs.pop(one)}
    results = {free_name(key, taken): key for key in new if key not in others}
    yield Change((Step("copy", (one,), tuple(results), JOIN),), results, (one,), WHY)


def _by_names(old: Sequence[str], new: Sequence[str], expected: Mapping[str, str]) -> dict[str, str]:
    """Return pairs of equal tensors: first tensors with corresponding names, then tensors whose names end similarly."""
    there = {*new}
    found = {key: expected[key] for key in old if expected.get(key) in there}
    taken = {*found.values()}
    rest = [key for key in old if key not in found], [key for key in new if key not in taken]
    return {**found, **paired(*rest)} if rest[0] and rest[1] else found


def pair_constants(pairs: Pairs, expected: Mapping[str, str]) -> None:
    """Add pairs of constant tensors, such as norms of ones, to ``pairs.names``, by their names or paired modules."""
    left = pairs.sources().keys(), pairs.destinations().keys()
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in _singles(pairs)}
    for old, new in pairs.doubtful:
        here, there = [key for key in old if key in left[0]], {key: None for key in new if key in left[1]}
        for key in here:
            module, _, leaf = key.rpartition(".")
            near = f"{modules[module]}.{leaf}" if module in modules else ""
            options = [one for one in (expected.get(key, ""), near) if one in there]
            options += there if len(here) == len(there) == 1 else []
            if options:
                pairs.names[key] = options[0]
                del there[options[0]]


def _singles(pairs: Pairs) -> Iterator[tuple[str, str]]:
    """Yield (source key, destination key) for each source tensor that becomes one destination tensor.

    The tensors that a change converts come first, then those that are only renamed.
    """
    for change in pairs.changes:
        if len(change.sources) == len(change.results) == 1:
            yield change.sources[0], next(iter(change.results.values()))
    yield from pairs.names.items()


def reshapes(pairs: Pairs) -> Iterator[Change]:
    """Yield a reshape for each pair of tensors with equal values and different shapes."""
    for old, new in pairs.names.items():
        shape = pairs.there.tensors[new].shape
        if pairs.here.tensors[old].shape != shape:
            yield Change((in_place("reshape", old, ORDER, (("shape", shape),)),), {old: new}, (old,), WHY)
