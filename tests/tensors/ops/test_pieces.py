"""Casts of long arrays: a few values at a time, with the result of a single cast, in little memory."""

import tracemalloc

import numpy as np
import pytest

from ckptsurgeon.tensors.ops import casts
from ckptsurgeon.tensors.ops.casts import CACHED, CastLosses, cast

PAIRS = [("float32", "float16"), ("bfloat16", "float8_e4m3fn"), ("float64", "bfloat16"), ("float16", "float8_e5m2")]


def values(source: str, size: int) -> np.ndarray:
    numbers = np.random.default_rng(0).standard_normal(size) * np.exp2(np.arange(size) % 60 - 40)
    return cast(numbers, "float64", source)[0]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_a_cast_in_pieces_has_the_values_and_losses_of_a_single_cast(
    source: str, destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = values(source, 3000).reshape(3, -1)
    whole, lost = cast(given, source, destination)
    monkeypatch.setattr(casts, "CACHED", 100)
    pieces, also_lost = cast(given, source, destination)
    assert pieces.dtype == whole.dtype
    np.testing.assert_array_equal(pieces, whole)
    assert also_lost == lost
    assert (lost != CastLosses()) == (destination != "bfloat16")


@pytest.mark.costly
@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_a_cast_of_many_values_takes_little_more_memory_than_its_result(source: str, destination: str) -> None:
    given = values(source, 16 * CACHED)
    cast(given[:1], source, destination)  # makes the tables that stay in memory
    tracemalloc.start()
    made, _ = cast(given, source, destination)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.nbytes + 40 * CACHED  # ten arrays of four bytes
