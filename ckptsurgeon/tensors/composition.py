"""Describes tensors that are computed from others: slices, permutations, reshapes, concatenations, multiples, sums.

No value is read. If the result is a strided view of a stored tensor, the returned ``TensorInfo`` describes that view,
which is copied and checked like any stored tensor. Otherwise ``TensorInfo.made`` contains the operation and its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .dtypes import BLOCKS, ROUNDED, contiguous_stride
from .info import (
    Averaged,
    Cast,
    Concatenated,
    Decoded,
    Encoded,
    ExpScaled,
    Filled,
    Given,
    Made,
    Noisy,
    Permuted,
    Reshaped,
    Scaled,
    Shifted,
    Sliced,
    Summed,
    Taken,
    TensorInfo,
)

__all__ = [
    "averaged",
    "blocked",
    "cast",
    "cut",
    "decoded",
    "decoded_names",
    "exp_scale",
    "filled",
    "given",
    "is_decoded",
    "is_rowwise",
    "join",
    "leaves",
    "merged_runs",
    "noisy",
    "permute",
    "reshape",
    "scale",
    "shift",
    "take",
    "total",
]


def leaves(info: TensorInfo) -> Iterator[TensorInfo]:
    """Yield the stored tensors that a tensor is computed from; for a stored tensor, yield the tensor itself."""
    waiting = [info]
    while waiting:
        one = waiting.pop()
        if one.made is None:
            yield one
        else:
            of = one.made.of
            waiting.extend(reversed(of) if isinstance(of, tuple) else (of,))


def is_decoded(info: TensorInfo) -> bool:
    """Return whether a tensor is a decoded weight, or is computed from one."""
    return any(True for _ in decoded_names(info))


def decoded_names(info: TensorInfo) -> Iterator[str]:
    """Yield the key of each decoded weight that a tensor is computed from; for a decoded weight, yield its own key."""
    waiting = [info]
    while waiting:
        made = waiting.pop().made
        if isinstance(made, Decoded):
            yield made.name
        elif made is not None:
            waiting.extend(made.of if isinstance(made.of, tuple) else (made.of,))


_ROWWISE = (Cast, Concatenated, ExpScaled, Filled, Given, Noisy, Reshaped, Scaled, Shifted, Sliced, Summed, Taken)


def is_rowwise(info: TensorInfo) -> bool:
    """Return whether a few rows of a tensor can be computed from a few rows of stored tensors.

    They can if the operations keep rows together, and no stored tensor is transposed.
    """
    if info.made is None:
        steps = [step for size, step in zip(info.shape, info.stride or (), strict=False) if size > 1]
        return steps == sorted(steps, reverse=True)
    of = info.made.of
    return isinstance(info.made, _ROWWISE) and all(map(is_rowwise, of if isinstance(of, tuple) else (of,)))


def cut(info: TensorInfo, dim: int, begin: int, size: int) -> TensorInfo:
    """Return the slice of a tensor that has ``size`` elements along ``dim``, starting at the index ``begin``."""
    if (begin, size) == (0, info.shape[dim]):
        return info
    shape = (*info.shape[:dim], size, *info.shape[dim + 1 :])
    if isinstance(info.made, Concatenated) and info.made.dim == dim and size:
        return join(list(_parts(info.made, begin, begin + size)), dim)
    if info.storage is None:
        return _made(info, shape, Sliced(info, tuple(begin if d == dim else 0 for d in range(len(shape)))))
    stride = info.stride or contiguous_stride(info.shape)
    return replace(
        info, shape=shape, offset=info.offset + begin * stride[dim] * info.itemsize, stride=_plain(shape, stride)
    )


def _parts(made: Concatenated, begin: int, end: int) -> Iterator[TensorInfo]:
    """Yield the slices of the tensors in ``made`` that together are its elements from ``begin`` up to ``end``."""
    at = 0
    for one in made.of:
        first, last = max(begin - at, 0), min(end - at, one.shape[made.dim])
        if first < last:
            yield cut(one, made.dim, first, last - first)
        at += one.shape[made.dim]


def take(info: TensorInfo, dim: int, runs: Sequence[tuple[int, int]]) -> TensorInfo:
    """Return the elements at the indices in ``runs`` along ``dim``; a run is (first index, index after the last)."""
    merged = merged_runs(runs)
    if len(merged) == 1:
        return cut(info, dim, merged[0][0], merged[0][1] - merged[0][0])
    size = sum(end - begin for begin, end in merged)
    return _made(info, (*info.shape[:dim], size, *info.shape[dim + 1 :]), Taken(info, dim, tuple(merged)))


def merged_runs(runs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges of indices (begin, end); ranges that follow each other without a gap are joined."""
    merged: list[tuple[int, int]] = []
    for begin, end in runs:
        if merged and merged[-1][1] == begin:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return merged


def permute(info: TensorInfo, dims: Sequence[int]) -> TensorInfo:
    """Return a tensor with its dimensions in the order ``dims``."""
    shape = tuple(info.shape[d] for d in dims)
    if info.storage is None:
        return _made(info, shape, Permuted(info, tuple(dims)))
    stride = info.stride or contiguous_stride(info.shape)
    return replace(info, shape=shape, stride=_plain(shape, [stride[d] for d in dims]))


def reshape(info: TensorInfo, shape: Sequence[int]) -> TensorInfo:
    """Return a tensor reshaped to ``shape``, which must have the same number of elements."""
    shape = tuple(shape)
    if shape == info.shape:
        return info
    stride = None if info.storage is None else _viewed(info, shape)
    if stride is None:
        return _made(info, shape, Reshaped(info))
    return replace(info, shape=shape, stride=_plain(shape, stride))


def join(infos: Sequence[TensorInfo], dim: int) -> TensorInfo:
    """Return tensors concatenated along ``dim``. They must have one dtype; their shapes may differ only in ``dim``."""
    first = infos[0]
    if len(infos) == 1:
        return first
    shape = (*first.shape[:dim], sum(info.shape[dim] for info in infos), *first.shape[dim + 1 :])
    return _made(first, shape, Concatenated(tuple(infos), dim))


def scale(info: TensorInfo, factor: float) -> TensorInfo:
    """Return a floating-point tensor multiplied by ``factor``."""
    return _made(info, info.shape, Scaled(info, factor))


def exp_scale(info: TensorInfo, exponent: TensorInfo) -> TensorInfo:
    """Return a floating-point tensor times e to the power of ``exponent``, a tensor with one element."""
    return _made(info, info.shape, ExpScaled((info, exponent)))


def shift(info: TensorInfo, by: float) -> TensorInfo:
    """Return a floating-point tensor plus the number ``by``; the result is float64 if the tensor is, else float32."""
    return TensorInfo("float64" if info.dtype == "float64" else "float32", info.shape, made=Shifted(info, by))


def noisy(info: TensorInfo, dim: int, runs: Sequence[tuple[int, int]], by: float, seed: int) -> TensorInfo:
    """Return a floating-point tensor multiplied by random factors, so that copies of an element differ.

    The mean of the factors of all copies of an element is 1. The ranges of indices in ``runs``, one after the other,
    list for each index along ``dim`` the index that it is a copy of. ``tensors.ops.noise`` computes the factors from
    ``by`` and ``seed``.
    """
    return _made(info, info.shape, Noisy(info, dim, tuple(merged_runs(runs)), by, seed))


def blocked(info: TensorInfo, dtype: str, name: str = "") -> TensorInfo:
    """Return a floating-point tensor quantised to ``dtype``, a type of GGUF that stores codes in blocks.

    Each row must be a whole number of blocks. ``name`` is the key of the tensor, for messages.
    """
    numbers, nbytes = BLOCKS[dtype]
    steps = (*(1 for _ in info.shape[1:]), numbers)
    made = Encoded((info,), "gguf", "codes", steps, "", (("type", float(ROUNDED[dtype])),), name)
    return TensorInfo(dtype, (*info.shape[:-1], info.shape[-1] // numbers * nbytes), made=made)


def given(values: Sequence[float]) -> TensorInfo:
    """Return a float32 vector of the numbers ``values``, which are stored in the plan itself."""
    return TensorInfo("float32", (len(values),), made=Given(tuple(values)))


def averaged(info: TensorInfo, dim: int) -> TensorInfo:
    """Return the mean of a floating-point tensor along a dimension, which stays, with the size 1."""
    return _made(info, (*info.shape[:dim], 1, *info.shape[dim + 1 :]), Averaged(info, dim))


def total(infos: Sequence[TensorInfo], *, is_mean: bool = False, weights: Sequence[float] = ()) -> TensorInfo:
    """Return the sum, or the mean, of floating-point tensors that all have the same dtype and shape.

    If there are ``weights``, the sum is weighted: one weight for each tensor.
    """
    return _made(infos[0], infos[0].shape, Summed(tuple(infos), is_mean, tuple(weights)))


def filled(info: TensorInfo, shape: Sequence[int], value: float) -> TensorInfo:
    """Return a tensor with the dtype of ``info`` whose elements are all ``value``."""
    return _made(info, tuple(shape), Filled(value))


def cast(info: TensorInfo, dtype: str) -> TensorInfo:
    """Return a floating-point tensor cast to another floating-point dtype."""
    return info if info.dtype == dtype else TensorInfo(dtype, info.shape, made=Cast(info))


def decoded(shape: Sequence[int], made: Decoded) -> TensorInfo:
    """Return the float32 tensor that results from decoding a quantised tensor."""
    return TensorInfo("float32", tuple(shape), made=made)


def _made(info: TensorInfo, shape: tuple[int, ...], made: Made) -> TensorInfo:
    return TensorInfo(info.dtype, shape, made=made)


def _plain(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...] | None:
    """Return ``stride`` as a tuple; None if a tensor with this shape and these strides is contiguous.

    The strides of dimensions of size 1 are ignored.
    """
    plain = contiguous_stride(shape)
    same = all(a == b for size, a, b in zip(shape, stride, plain, strict=True) if size > 1)
    return None if same or 0 in shape else tuple(stride)


def _viewed(info: TensorInfo, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the strides of a stored tensor viewed in another shape; None if the new shape would need a copy.

    As in ``torch.Tensor.view``, neighbouring dimensions that are evenly spaced are merged and then split differently.
    """
    if info.stride is None or 0 in shape:
        return contiguous_stride(shape)
    stride: list[int] = []
    left = list(shape)
    size, step = 1, None
    for have, by in reversed([pair for pair in zip(info.shape, info.stride, strict=True) if pair[0] > 1]):
        if step is not None and by != size * step:
            if not _take(left, stride, size, step):
                return None
            size, step = 1, None
        step = by if step is None else step
        size *= have
    if not _take(left, stride, size, step or 1) or math.prod(left) != 1:
        return None
    stride += [1] * len(left)
    return tuple(reversed(stride))


def _take(left: list[int], stride: list[int], size: int, step: int) -> bool:
    """Find strides for the last dimensions in ``left`` whose sizes have the product ``size``; False if there are none.

    ``left`` has the sizes of the dimensions that have no stride yet, and ``step`` is the stride of the last of them.
    The strides are appended to ``stride`` (last dimension first), and the sizes are removed from ``left``.
    """
    done = 1
    while done < size:
        if not left or size % (done * left[-1]):
            return False
        stride.append(step * done)
        done *= left.pop()
    return True
