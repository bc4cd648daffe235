"""Finds operations that put the elements of one tensor into the order of another: transpose, reshape, permutation.

Dimensions may be in another order, and may be joined or divided. Kernels of convolutions in TensorFlow and JAX have the
shape (height, width, inputs, outputs), kernels of attention in Flax have (inputs, heads, size of a head).
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
from .line_fingerprints import sample_of
from .rounded import are_near, projected_sample
from .rounded_elements import rounded_order
from .structure import operations_for_order

__all__ = ["Operations", "arrangement", "permutation", "with_steps"]

Shape = tuple[int, ...]
Operations = tuple[tuple[str, Fields], ...]
"""Operations on one tensor, each as (verb, fields)."""
Tensor = tuple[Checkpoint, TensorInfo]
DIMS = 5
"""Orders of dimensions are tried only for tensors of at most this many dimensions."""


def arrangement(one: Tensor, other: Tensor, dtype: str, *, is_rounded: bool = False) -> Operations | None:
    """Return the operations after which ``one`` has the shape, and the first and last elements, of ``other``.

    Returns None if there are none. If ``is_rounded`` is true, these elements may differ by the rounding of float16 and
    bfloat16.
    """
    (source, info), (destination, wanted) = one, other
    if max(len(info.shape), len(wanted.shape)) > DIMS:
        return None
    options = _options(info.shape, wanted.shape)
    if is_rounded:
        line = projected_sample(destination, wanted)
        near = (one for one in options if are_near(projected_sample(source, _done(info, one)), line))
        return next(near, None)
    sample = sample_of(destination, wanted, dtype)
    return next((one for one in options if sample_of(source, _done(info, one), dtype) == sample), None)


def _options(shape: Shape, wanted: Shape) -> Iterator[Operations]:
    """Yield possible operations, the simplest first: dimensions are permuted before or after a reshape."""
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
    """Return whether joining consecutive dimensions of one of the two shapes gives the other."""
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


def permutation(one: Tensor, other: Tensor, dtype: str, *, is_rounded: bool = False) -> Operations | None:
    """Return the operations that permute ``one`` along its first two dimensions so that it may equal ``other``.

    Only fingerprints of slices are compared, which do not depend on the order of elements. So the whole tensors still
    have to be compared afterwards. Returns None if no permutation fits. If ``is_rounded`` is true, the elements may be
    roundings to float16 and bfloat16. Then the order of a vector's elements is not found: several of them may be the
    same number in bfloat16.
    """
    if not one[1].shape or one[1].shape != other[1].shape or (is_rounded and len(one[1].shape) < 2):
        return None
    dims = tuple(range(min(2, len(one[1].shape))))
    found: list[tuple[str, Fields]] = []
    if is_rounded:
        slices = rounded_order(one, other)
    else:
        slices = [*zip(*(slices_of(*side, dtype, dims) for side in (one, other)), strict=True)]
    for dim, (here, there) in zip(dims, slices, strict=True):
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
