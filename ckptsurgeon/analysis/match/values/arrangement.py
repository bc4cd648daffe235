"""Finds how the elements of one tensor are ordered in another: with other dimensions, or permuted along two of them.

Dimensions may be in another order, and joined or taken apart: the kernels of convolutions in TensorFlow and JAX are
(height, width, inputs, outputs), those of attention in Flax (inputs, heads, size of a head).
https://flax.readthedocs.io/en/stable/api_reference/flax.linen/layers.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, permutations
from operator import mul

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....tensors.composition import permute, reshape
from ....tensors.info import TensorInfo
from ..operations.steps import Fields, Step, in_place
from .elements import slices_of
from .lines import sample_of
from .structure import operations_for_order

__all__ = ["Operations", "arrangement", "permutation", "with_steps"]

Shape = tuple[int, ...]
Operations = tuple[tuple[str, Fields], ...]
"""Operations on one tensor: (verb, fields) of each."""
Tensor = tuple[Checkpoint, TensorInfo]
DIMS = 5
"""The most dimensions that are tried in all orders."""


def arrangement(one: Tensor, other: Tensor, dtype: str) -> Operations | None:
    """Return the operations that give ``one`` the dimensions of ``other``; None if none give it the same sample."""
    (source, info), (destination, wanted) = one, other
    if max(len(info.shape), len(wanted.shape)) > DIMS:
        return None
    sample = sample_of(destination, wanted, dtype)
    for operations in _options(info.shape, wanted.shape):
        if sample_of(source, _done(info, operations), dtype) == sample:
            return operations
    return None


def _options(shape: Shape, wanted: Shape) -> Iterator[Operations]:
    """Yield the operations that may be right, the simplest first: orders of dimensions before or after a reshape."""
    seen: set[Operations] = set()
    for dims in permutations(range(len(shape))):
        turned = tuple(shape[dim] for dim in dims)
        if _is_joined(turned, wanted):
            seen.add(found := (*_turn(dims), *_reshape(turned, wanted)))
            yield found
    for dims in permutations(range(len(wanted))):
        before = tuple(wanted[dims.index(dim)] for dim in range(len(wanted)))
        if _is_joined(shape, before) and (found := (*_reshape(shape, before), *_turn(dims))) not in seen:
            yield found


def _is_joined(one: Shape, other: Shape) -> bool:
    """Return whether one of two shapes results from the other if dimensions that follow each other are joined."""
    ends = [set(accumulate(shape, mul)) for shape in (one, other)]
    return ends[0] <= ends[1] | {1} or ends[1] <= ends[0] | {1}


def _turn(dims: Sequence[int]) -> Operations:
    if list(dims) == sorted(dims):
        return ()
    return (("transpose", ()),) if len(dims) == 2 else (("permute", (("dims", tuple(dims)),)),)


def _reshape(shape: Shape, wanted: Shape) -> Operations:
    return () if shape == wanted else (("reshape", (("shape", wanted),)),)


def _done(info: TensorInfo, operations: Operations) -> TensorInfo:
    for verb, fields in operations:
        values = dict(fields)
        info = reshape(info, values["shape"]) if verb == "reshape" else permute(info, values.get("dims", (1, 0)))
    return info


def permutation(one: Tensor, other: Tensor, dtype: str) -> Operations | None:
    """Return the operations that permute ``one`` along its first two dimensions so that it may equal ``other``.

    Elements are compared without their order, so that what is found still has to be compared as a whole.
    """
    if not one[1].shape or one[1].shape != other[1].shape:
        return None
    dims = tuple(range(min(2, len(one[1].shape))))
    found: list[tuple[str, Fields]] = []
    for dim, here, there in zip(dims, *(slices_of(*side, dtype, dims) for side in (one, other)), strict=True):
        if not np.array_equal(np.sort(here), np.sort(there)):
            return None
        order = np.argsort(here, kind="stable")[np.argsort(np.argsort(there, kind="stable"), kind="stable")]
        operations = operations_for_order(order, dim)
        if operations is None:
            return None
        found += operations
    return tuple(found)


def with_steps(name: str, operations: Operations, phase: int) -> tuple[Step, ...]:
    """Return the operations as steps on the tensor ``name``."""
    return tuple(in_place(verb, name, phase, fields) for verb, fields in operations)
