"""The operations that make a tensor larger or smaller (slice, take, pad, tile, pool, repeat), scale, and noise."""

from __future__ import annotations

from hashlib import blake2b

from ...errors import PlanError
from ...tensors.composition import cut, filled, join, noisy, reshape, scale, take, total
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from .operation import ALL, Operation, indices_of

__all__ = ["MOST_PARTS", "dimension", "noised", "of_heads", "resized", "scaled_part"]

MOST_PARTS = 100_000
"""The most parts into which an operation may divide a tensor, or which it may join.

This is enough for experts, heads or layers, not for the rows of a vocabulary.
"""


def dimension(operation: Operation, dim: int, key: str, dims: int) -> int:
    """Return the dimension ``dim`` as an index from 0; a negative ``dim`` counts from the end.

    Raises PlanError if ``dim`` is out of range.
    """
    if not -dims <= dim < dims:
        hint = "Select only tensors with this dimension: a module's bias has fewer dimensions than its weight."
        raise PlanError(f"{operation}: {escape(key)} has {count(dims, 'dimension')}, no dimension {dim}.", hint=hint)
    return dim % dims


def of_heads(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return keys or values with fewer heads, each the mean of neighbours, or with more heads, by repeating each.

    Grouped-query attention (https://arxiv.org/abs/2305.13245) pools heads when a model is converted to it, and repeats
    them when the model is run. Raises PlanError if the rows or the numbers of heads do not fit.
    """
    heads, to = operation.fields["heads"], operation.fields["to"]
    fewer, more = (to, heads) if operation.verb == "pool" else (heads, to)
    if fewer > more or more % fewer:
        wanted = f"a divisor of {heads}" if operation.verb == "pool" else f"a multiple of {heads}"
        raise PlanError(f"{operation}: the {count(heads, 'head')} cannot become {to}, which is not {wanted}.")
    if more > MOST_PARTS:
        raise PlanError(f"{operation}: {more} heads are more than the limit of {MOST_PARTS}.")
    rows, rest = info.shape[0] if info.shape else 0, info.shape[1:]
    if not rows or rows % heads:
        raise PlanError(
            f"{operation}: {escape(key)} has {count(rows, 'row')}, not a multiple of {count(heads, 'head')}.",
            hint="Give the number of heads that the keys and values have: num_key_value_heads.",
        )
    size, times = rows // heads, more // fewer
    if operation.verb == "repeat":
        viewed = reshape(info, (heads, 1, size, *rest))
        return reshape(join([viewed] * times, 1), (to * size, *rest))
    viewed = reshape(info, (to, times, size, *rest))
    mean = total([cut(viewed, 1, index, 1) for index in range(times)], is_mean=True)
    return reshape(mean, (to * size, *rest))


def resized(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return a tensor after a slice, take, pad or tile: with more or fewer elements along one dimension.

    Raises PlanError if the dimension does not have the indices or the size that the operation needs.
    """
    dim = dimension(operation, operation.fields["dim"], key, len(info.shape))
    size = info.shape[dim]
    if operation.verb == "tile":
        times = operation.fields["times"]
        if times > MOST_PARTS:
            raise PlanError(f"{operation}: {times} copies are more than the limit of {MOST_PARTS}.")
        return join([info] * times, dim)
    if operation.verb == "pad":
        more = operation.fields["size"] - size
        if more < 0:
            raise PlanError(
                f"{operation}: dimension {dim} of {escape(key)} has size {size} already, more than "
                f"{operation.fields['size']}.",
                hint="Use slice to make the dimension smaller.",
            )
        shape = (*info.shape[:dim], more, *info.shape[dim + 1 :])
        return join([info, filled(info, shape, float(operation.fields["value"]))], dim) if more else info
    if operation.verb == "take":
        block = operation.fields["block"]
        runs = [(begin * block, end * block) for begin, end in indices_of(operation.fields["indices"])]
        if size % block:
            raise PlanError(
                f"{operation}: dimension {dim} of {escape(key)} has size {size}, not a multiple of the block {block}."
            )
        if max(end for _, end in runs) > size:
            blocks = "" if block == 1 else f", which is {count(size // block, 'block')} of {block}"
            raise PlanError(
                f"{operation}: dimension {dim} of {escape(key)} has size {size}{blocks}: the indices "
                f"{escape(operation.fields['indices'], 60)} go beyond its end."
            )
        return take(info, dim, runs)
    begin, end = (one + size if one < 0 else one for one in (operation.fields["begin"], operation.fields["end"]))
    if not 0 <= begin < end <= size:
        raise PlanError(
            f"{operation}: {operation.fields['begin']} to {operation.fields['end']} is not a range of dimension {dim} "
            f"of {escape(key)}, which has size {size}.",
            hint="The end is the index after the last element; indices below 0 count from the end.",
        )
    return cut(info, dim, begin, end - begin)


def noised(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return a tensor plus random noise, which sums to 0 over all copies of the same element along a dimension.

    Raises PlanError if the indices of the operation do not fit the dimension.
    """
    dim = dimension(operation, operation.fields["dim"], key, len(info.shape))
    block = operation.fields["block"]
    runs = [(begin * block, end * block) for begin, end in indices_of(operation.fields["of"])]
    size = sum(end - begin for begin, end in runs)
    if size != info.shape[dim] or max(end for _, end in runs) > size:
        raise PlanError(
            f"{operation}: dimension {dim} of {escape(key)} has size {info.shape[dim]}, and the indices "
            f"{escape(operation.fields['of'], 60)} in blocks of {block} do not give one original index for each "
            "element."
        )
    return noisy(info, dim, runs, float(operation.fields["by"]), _seed_of(operation.fields["seed"], key))


def _seed_of(seed: int, key: str) -> int:
    """Return the 64-bit seed of the noise for the tensor ``key``."""
    digest = blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def scaled_part(operation: Operation, key: str, info: TensorInfo) -> TensorInfo:
    """Return a tensor multiplied by a number: all of it, or the elements from ``begin`` to ``end`` along ``dim``.

    The number (``by``), ``begin``, ``end`` and ``dim`` are fields of the operation. Raises PlanError if ``begin`` and
    ``end`` are not a range of the dimension.
    """
    factor = float(operation.fields["by"])
    begin, end, given = operation.fields["begin"], operation.fields["end"], operation.fields["dim"]
    if (begin, end, given) == (0, ALL, 0):
        return scale(info, factor)
    dim = dimension(operation, given, key, len(info.shape))
    size = info.shape[dim]
    first, last = begin, size if end == ALL else end
    begin, end = (one + size if one < 0 else one for one in (first, last))
    if not 0 <= begin < end <= size:
        raise PlanError(
            f"{operation}: {first} to {last} is not a range of dimension {dim} of {escape(key)}, which has size "
            f"{size}.",
            hint="The end is the index after the last element; indices below 0 count from the end.",
        )
    parts = ((0, begin, 1.0), (begin, end, factor), (end, size, 1.0))
    cuts = [(cut(info, dim, start, stop - start), by) for start, stop, by in parts if start < stop]
    return join([scale(one, by) if by != 1.0 else one for one, by in cuts], dim)
