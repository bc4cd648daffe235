"""Finds tensors that have the same elements in another order: kernels of JAX, permuted channels, copies, stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ....tensors.composition import cut, reshape
from ....tensors.info import TensorInfo
from ..names import words_of
from ..operations.stacked import numbered_lists
from ..operations.steps import JOIN, ORDER, RETURN, STACK, UNSTACK, Change, Step, free_name
from ..proposal import Tensors
from .arrangement import arrangement, permutation, with_steps
from .compared_tensors import EXPERTS, Pairs, Side
from .elements import elements_of
from .line_fingerprints import lines_of
from .relations import WHY
from .rounded import rounded_lines
from .rounded_elements import Groups, rounded_groups

Numbers = npt.NDArray[np.uint64]

__all__ = ["rearranged", "slices_rearranged", "turned_copies", "vector_stacks"]


def rearranged(pairs: Pairs) -> Iterator[Change]:
    """Yield a change for each pair of tensors with the same elements in another order of dimensions or rows."""
    yield from _same_elements(pairs, *pairs.plain())


def slices_rearranged(pairs: Pairs) -> Iterator[Change]:
    """Yield changes as ``rearranged`` does, also for matrices and kernels in stacks (named ``experts.w1.0``)."""
    here, there = pairs.plain()
    stacks = _slices(here), _slices(there)
    if stacks[0] or stacks[1]:
        yield from _same_elements(pairs, {**here, **stacks[0]}, {**there, **stacks[1]})


def _slices(tensors: Tensors) -> dict[str, TensorInfo]:
    return {
        f"{key}.{index}": reshape(cut(info, 0, index, 1), info.shape[1:])
        for key, info in tensors.items()
        if len(info.shape) > 2 and 1 < info.shape[0] <= EXPERTS and info.numel
        for index in range(info.shape[0])
    }


def _same_elements(pairs: Pairs, here: Tensors, there: Tensors) -> Iterator[Change]:
    """Yield a change for each pair of tensors with the same elements, unless a third tensor has these elements, too."""
    sizes = {info.numel for info in here.values()} & {info.numel for info in there.values()} - {0, 1}
    some = [{key: info for key, info in tensors.items() if info.numel in sizes} for tensors in (here, there)]
    found = _by_elements(pairs, *some)
    for elements, old in found[0].items():
        new = found[1].get(elements, [])
        if len(old) == len(new) == 1:
            one = pairs.here.checkpoint, here[old[0]]
            other = pairs.there.checkpoint, there[new[0]]
            operations = arrangement(one, other, pairs.here.dtype, is_rounded=pairs.is_rounded)
            if operations is None:
                operations = permutation(one, other, pairs.here.dtype, is_rounded=pairs.is_rounded)
            if operations:
                yield Change(with_steps(old[0], operations, ORDER), {old[0]: new[0]}, (old[0],), WHY)


def _by_elements(pairs: Pairs, here: Tensors, there: Tensors) -> tuple[Groups, Groups]:
    """Return {fingerprint: keys} for ``here`` and ``there``; tensors with the same elements have one fingerprint."""
    if pairs.is_rounded:
        return rounded_groups(pairs.here.checkpoint, here, pairs.there.checkpoint, there)
    found: tuple[Groups, Groups] = defaultdict(list), defaultdict(list)
    for groups, side, tensors in ((found[0], pairs.here, here), (found[1], pairs.there, there)):
        for key, info in tensors.items():
            groups[info.numel, elements_of(side.checkpoint, info, side.dtype)].append(key)
    return found


def turned_copies(pairs: Pairs) -> Iterator[Change]:
    """Yield the changes that copy a renamed tensor and rearrange the copy, such as a head from a transposed embedding.

    The renamed tensor is removed from ``pairs.names``, because the change makes it, too.
    """
    left = {key: info for key, info in pairs.plain()[1].items() if len(info.shape) > 1}
    sizes = {info.numel for info in left.values()}
    used = {key: pairs.here.tensors[key] for key in pairs.names if pairs.here.tensors[key].numel in sizes}
    used = {key: info for key, info in used.items() if info.numel > 1}
    found = _by_elements(pairs, used, left) if used else ({}, {})
    for elements, new in found[1].items():
        old = next(iter(found[0].get(elements, [])), "")
        if old and len(new) == 1:
            one, other = (pairs.here.checkpoint, used[old]), (pairs.there.checkpoint, left[new[0]])
            operations = arrangement(one, other, pairs.here.dtype, is_rounded=pairs.is_rounded)
            names = [free_name(key, pairs.here.checkpoint) for key in (pairs.names[old], new[0])]
            if operations:
                copied = Step("copy", (old,), tuple(names), JOIN)
                results = dict(zip(names, (pairs.names.pop(old), new[0]), strict=True))
                yield Change((copied, *with_steps(names[1], operations, RETURN)), results, (old,), WHY)


def vector_stacks(pairs: Pairs) -> Iterator[Change]:
    """Yield changes that stack vectors (norms of layers) to a matrix of the other checkpoint, or unstack a matrix."""
    here, there = pairs.sources(), pairs.destinations()
    for stack, vectors, is_ordered in _vector_stacks(pairs, pairs.there, there, pairs.here, here):
        name = free_name(stack, pairs.here.checkpoint)
        rows = vectors if is_ordered else _free_rows(name, len(vectors), pairs.here.checkpoint)
        copies = [Step("copy", (key,), (row,), RETURN) for key, row in zip(vectors, rows, strict=True) if key != row]
        yield Change((*copies, Step("stack", rows, (name,), STACK)), {name: stack}, vectors, WHY)
    for stack, vectors, is_ordered in _vector_stacks(pairs, pairs.here, here, pairs.there, there):
        names = {free_name(key, pairs.here.checkpoint): key for key in vectors}
        if not is_ordered:
            names = dict(zip(_free_rows(stack, len(vectors), pairs.here.checkpoint), vectors, strict=True))
        yield Change((Step("unstack", (stack,), tuple(names), UNSTACK),), names, (stack,), WHY)


def _free_rows(stack: str, number: int, taken: Mapping[str, object]) -> tuple[str, ...]:
    """Return numbered names for the rows of a stack; no source tensor has one of them."""
    rows = tuple(f"{stack}.{index}" for index in range(number))
    return _free_rows(f"new.{stack}", number, taken) if any(row in taken for row in rows) else rows


def _vector_stacks(
    pairs: Pairs, whole: Side, stacks: Tensors, single: Side, vectors: Tensors
) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Yield (matrix, vectors that are its rows, whether the numbers of the vectors increase from row to row).

    Of several lists of vectors, the list with the most similar name is chosen; lists in order come first.
    """
    lists: dict[tuple[int, ...], list[list[str]]] = defaultdict(list)
    for _, keys in numbered_lists({key: info for key, info in vectors.items() if len(info.shape) == 1}):
        lists[len(keys), vectors[keys[0]].numel].append(keys)
    matrices = {
        key: info
        for key, info in stacks.items()
        if info.shape in lists and info.numel and key not in whole.checkpoint.codes.by_key
    }
    options = [keys for shape in {info.shape for info in matrices.values()} for keys in lists[shape]]
    lines = [reshape(vectors[key], (1, vectors[key].numel)) for keys in options for key in keys]
    rows, of_vectors = _rows(pairs, whole, [*matrices.values()], single, lines)
    lengths = [*accumulate(len(keys) for keys in options)]
    ids = [np.concatenate(some) if some else np.zeros(0, np.uint64) for some in _cut(of_vectors, lengths)]
    taken: set[str] = set()
    for (key, info), wanted in zip(matrices.items(), rows, strict=True):
        left = [
            (keys, found) for keys, found in zip(options, ids, strict=True)
            if keys[0] not in taken and vectors[keys[0]].numel == info.shape[1]
        ]  # fmt: skip
        ordered = [keys for keys, found in left if np.array_equal(found, wanted)]
        chosen = _nearest(key, ordered or [keys for keys, found in left if _is_permutation(found, wanted)])
        if chosen:
            taken.add(chosen[0])
            found = next(found for keys, found in left if keys is chosen)
            yield key, tuple(chosen if ordered else _in_order(chosen, found, wanted)), bool(ordered)


def _is_permutation(found: Numbers, wanted: Numbers) -> bool:
    return np.array_equal(np.sort(found), np.sort(wanted))


def _in_order(keys: Sequence[str], found: Numbers, wanted: Numbers) -> list[str]:
    """Return keys, sorted so that their fingerprints follow each other as in ``wanted``, the fingerprints of the rows.

    ``found`` has the fingerprint of each key.
    """
    order = np.argsort(found, kind="stable")[np.argsort(np.argsort(wanted, kind="stable"), kind="stable")]
    return [keys[index] for index in order.tolist()]


def _cut(values: list[Numbers], ends: Sequence[int]) -> Iterator[list[Numbers]]:
    yield from (values[begin:end] for begin, end in zip([0, *ends], ends, strict=False))


def _rows(
    pairs: Pairs, whole: Side, matrices: list[TensorInfo], single: Side, lines: list[TensorInfo]
) -> tuple[list[Numbers], list[Numbers]]:
    """Return the fingerprints of the rows of ``matrices``, and of ``lines``, which have one row each."""
    if pairs.is_rounded:
        both = [(whole.checkpoint, info) for info in matrices], [(single.checkpoint, info) for info in lines]
        found = rounded_lines(*both)
        return [one.rows for one in found[0]], [one.rows for one in found[1]]
    return (
        [lines_of(whole.checkpoint, info, whole.dtype).rows for info in matrices],
        [lines_of(single.checkpoint, info, single.dtype).rows for info in lines],
    )


def _nearest(key: str, options: list[list[str]]) -> list[str]:
    """Return the list of vectors whose names share the most words with ``key``; [] for a tie."""
    if len(options) < 2:
        return options[0] if options else []
    words = set(words_of(key))
    shared = [len(words & set(words_of(keys[0]))) for keys in options]
    return options[shared.index(max(shared))] if shared.count(max(shared)) == 1 else []
