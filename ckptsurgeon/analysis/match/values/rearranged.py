"""Finds tensors that have the same elements in another order: kernels of JAX, permuted channels, copies, stacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ....tensors.composition import cut, reshape
from ....tensors.info import TensorInfo
from ..names import words_of
from ..operations.stacked import numbered_lists
from ..operations.steps import JOIN, ORDER, RETURN, STACK, UNSTACK, Change, Step, free_name
from ..proposal import Tensors
from .arrangement import arrangement, permutation, with_steps
from .elements import elements_of
from .lines import lines_of
from .relations import WHY
from .side import EXPERTS, Pairs, Side

__all__ = ["rearranged", "slices_rearranged", "turned_copies", "vector_stacks"]


def rearranged(pairs: Pairs) -> Iterator[Change]:
    """Yield a change for each two tensors with the same elements: another order of dimensions, or a permutation."""
    yield from _same_elements(pairs, *pairs.plain())


def slices_rearranged(pairs: Pairs) -> Iterator[Change]:
    """Yield such changes also for matrices and kernels in stacks, which get names such as ``experts.w1.0``."""
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
    """Yield a change for each two tensors with the same elements, if no third tensor has the same elements."""
    sizes = {info.numel for info in here.values()} & {info.numel for info in there.values()} - {0, 1}
    found = [
        _by_elements(side, {key: info for key, info in tensors.items() if info.numel in sizes})
        for side, tensors in ((pairs.here, here), (pairs.there, there))
    ]
    for elements, old in found[0].items():
        new = found[1].get(elements, [])
        if len(old) == len(new) == 1:
            one = pairs.here.checkpoint, here[old[0]]
            other = pairs.there.checkpoint, there[new[0]]
            operations = arrangement(one, other, pairs.here.dtype)
            operations = operations if operations is not None else permutation(one, other, pairs.here.dtype)
            if operations:
                yield Change(with_steps(old[0], operations, ORDER), {old[0]: new[0]}, (old[0],), WHY)


def _by_elements(side: Side, tensors: Tensors) -> dict[tuple[int, int], list[str]]:
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for key, info in tensors.items():
        found[info.numel, elements_of(side.checkpoint, info, side.dtype)].append(key)
    return found


def turned_copies(pairs: Pairs) -> Iterator[Change]:
    """Yield the changes that copy a renamed tensor and rearrange the copy, such as a head from a transposed embedding.

    The renamed tensor is removed from ``pairs.names``, because the change makes it, too.
    """
    left = {key: info for key, info in pairs.plain()[1].items() if len(info.shape) > 1}
    sizes = {info.numel for info in left.values()}
    used = {key: pairs.here.tensors[key] for key in pairs.names if pairs.here.tensors[key].numel in sizes}
    used = {key: info for key, info in used.items() if info.numel > 1}
    found = _by_elements(pairs.here, used), _by_elements(pairs.there, left) if used else {}
    for elements, new in found[1].items():
        old = next(iter(found[0].get(elements, [])), "")
        if old and len(new) == 1:
            one, other = (pairs.here.checkpoint, used[old]), (pairs.there.checkpoint, left[new[0]])
            operations = arrangement(one, other, pairs.here.dtype)
            names = [free_name(key, pairs.here.checkpoint) for key in (pairs.names[old], new[0])]
            if operations:
                copied = Step("copy", (old,), tuple(names), JOIN)
                results = dict(zip(names, (pairs.names.pop(old), new[0]), strict=True))
                yield Change((copied, *with_steps(names[1], operations, RETURN)), results, (old,), WHY)


def vector_stacks(pairs: Pairs) -> Iterator[Change]:
    """Yield stacks and unstacks of vectors that are the rows of a matrix in the other checkpoint (norms of layers)."""
    here, there = pairs.sources(), pairs.destinations()
    for stack, vectors in _vector_stacks(pairs.there, there, pairs.here, here):
        name = free_name(stack, pairs.here.checkpoint)
        yield Change((Step("stack", vectors, (name,), STACK),), {name: stack}, vectors, WHY)
    for stack, vectors in _vector_stacks(pairs.here, here, pairs.there, there):
        names = {free_name(key, pairs.here.checkpoint): key for key in vectors}
        yield Change((Step("unstack", (stack,), tuple(names), UNSTACK),), names, (stack,), WHY)


def _vector_stacks(
    whole: Side, stacks: Tensors, single: Side, vectors: Tensors
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (matrix, vectors that are its rows); of several lists of vectors, the one with the most similar name."""
    lists: dict[tuple[int, int], list[list[str]]] = defaultdict(list)
    for _, keys in numbered_lists({key: info for key, info in vectors.items() if len(info.shape) == 1}):
        lists[len(keys), vectors[keys[0]].numel].append(keys)
    by_rows: dict[tuple[int, bytes], list[list[str]]] = defaultdict(list)
    matrices = {
        key: info
        for key, info in stacks.items()
        if info.shape in lists and info.numel and key not in whole.checkpoint.codes.by_key
    }
    for keys in (keys for shape in {info.shape for info in matrices.values()} for keys in lists[shape]):  # type: ignore[index]
        rows = b"".join(_row(single, vectors[key]) for key in keys)
        by_rows[vectors[keys[0]].numel, rows].append(keys)
    taken: set[str] = set()
    for key, info in matrices.items():
        rows = lines_of(whole.checkpoint, info, whole.dtype).rows.tobytes()
        options = [keys for keys in by_rows[info.shape[1], rows] if keys[0] not in taken]
        chosen = _nearest(key, options)
        if chosen:
            taken.add(chosen[0])
            yield key, tuple(chosen)


def _row(side: Side, info: TensorInfo) -> bytes:
    return lines_of(side.checkpoint, reshape(info, (1, *info.shape)), side.dtype).rows.tobytes()


def _nearest(key: str, options: list[list[str]]) -> list[str]:
    """Return the list of vectors whose names share the most words with ``key``; [] if two lists share as many."""
    if len(options) < 2:
        return options[0] if options else []
    words = set(words_of(key))
    shared = [len(words & set(words_of(keys[0]))) for keys in options]
    return options[shared.index(max(shared))] if shared.count(max(shared)) == 1 else []
