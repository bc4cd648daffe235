"""Reading parts of derived tensors: how often their inputs are read."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from ckptsurgeon.engine.compute.derived import read_derived
from ckptsurgeon.tensors.composition import take
from ckptsurgeon.tensors.info import Storage, TensorInfo
from ckptsurgeon.tensors.ops.regions import Array, Box, box_shape

SHAPE = (8, 6)
VALUES = np.arange(48, dtype="<f4").reshape(SHAPE)
RUNS = {
    "all, twice": ((0, 6), (0, 6)),
    "units, each twice": ((0, 2), (0, 2), (2, 4), (2, 4)),
    "elements, each three times": ((0, 1), (0, 1), (0, 1), (1, 2), (1, 2), (1, 2)),
    "units, each twice, as joined runs": ((0, 2), (0, 4), (2, 6), (4, 6)),
    "units of another length": ((2, 4), (2, 5), (3, 5)),
    "backwards": ((4, 6), (2, 4), (0, 2)),
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("runs", RUNS)
def test_an_element_that_is_taken_several_times_is_read_once(runs: str, dim: int) -> None:
    """Which matters if it is also computed, as a product is."""
    info = take(TensorInfo("float32", SHAPE, Storage("", 0, 4 * prod(SHAPE))), dim, RUNS[runs])
    read: list[Box] = []

    def part(of: TensorInfo, box: Box) -> Array:
        read.append(box)
        return VALUES[tuple(slice(*ends) for ends in box)]

    indices = np.concatenate([np.arange(*run) for run in RUNS[runs]])
    box = tuple((0, size) for size in info.shape)
    assert np.array_equal(read_derived(part, info, box), np.take(VALUES, indices, dim))
    other = SHAPE[1 - dim]
    assert sum(prod(box_shape(one)) for one in read) == other * len(set(indices.tolist()))
