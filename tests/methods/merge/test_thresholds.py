"""Exact thresholds by magnitude, against a sort."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ckptsurgeon.methods.merge._slices import in_pieces
from ckptsurgeon.methods.merge.arithmetic import threshold as _threshold
from ckptsurgeon.methods.merge.arithmetic.threshold import MagnitudeRank, cuts
from ckptsurgeon.tensors.ops.regions import Array

from ...helpers.depth import examples_of
from ...helpers.merge_arrays import Arrays


@pytest.fixture(params=[0, _threshold.FEW], ids=["counted", "sorted"], scope="module", autouse=True)
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small tensors are sorted; here they are counted, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_threshold, "FEW", request.param)
        yield


MANY = pytest.mark.parametrize("dtype", ["f4", "f8"])


def held(values: Array, rank: MagnitudeRank, limit: int) -> Array:
    """Return which values are in."""
    tensors = Arrays([values], limit=limit, threads=3)
    (cut,) = cuts(tensors, lambda at: [at.models[0]], [rank])
    return tensors.merged(in_pieces(lambda at: cut.holds(at, abs(at.models[0])))).astype(bool)


def sorted_out(values: Array, rank: MagnitudeRank) -> Array:
    sizes, beyond = np.abs(values), np.isnan(values)
    order = np.lexsort((-sizes, ~beyond) if rank.largest else (sizes, beyond))[: rank.count]
    mask = np.zeros(len(values), bool)
    mask[order] = True
    return mask | indifferent(values)


def indifferent(values: Array) -> Array:
    """Whether it makes no difference if a value is in: times zero, a NaN stays one."""
    mask: Array = (values == 0) | np.isnan(values)
    return mask


@pytest.mark.costly
@MANY
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("limit", [3000, 300_000])
def test_a_cut_is_where_a_sort_says(dtype: str, largest: bool, limit: int) -> None:
    draw = np.random.RandomState(0)
    for values in (draw.standard_normal(100_003), draw.randint(-9, 10, 100_003) / 8):
        values = values.astype(dtype)
        for count in (0, 1, 37_777, 100_002, 100_003):
            rank = MagnitudeRank(0, count, largest)
            assert np.array_equal(held(values, rank, limit) | indifferent(values), sorted_out(values, rank)), count


@pytest.mark.costly
@MANY
@given(data=st.data())
@examples_of(40)
def test_any_values_any_rank_any_slices(dtype: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    elements = st.one_of(
        st.floats(width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, math.inf, math.nan, -math.nan])
    )
    values = data.draw(arrays.arrays(dtype, size, elements=elements))
    rank = MagnitudeRank(0, data.draw(st.integers(0, size)), data.draw(st.booleans()))
    mask = held(values, rank, data.draw(st.integers(1, 50)))
    assert np.array_equal(mask | indifferent(values), sorted_out(values, rank))


def test_a_threshold_takes_two_passes_and_one_for_ties_and_of_few_values_one_less() -> None:
    draw = np.random.RandomState(0)
    for values, passes in ((np.arange(1, 1001) / 7, 2), (draw.randint(1, 9, 1000) / 8, 3)):
        tensors = Arrays([values.astype("f4")], limit=100)
        cuts(tensors, lambda at: [at.models[0]], [MagnitudeRank(0, 300)])
        assert tensors.passes == passes - (_threshold.FEW > 0)
