"""numpy's arrays and scalars in a pickle, checked as torch's tensors are."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.errors import FormatError
from ckptsurgeon.formats.pickle.machine import load
from ckptsurgeon.formats.pickle.numpy import Array
from ckptsurgeon.formats.pickle.torch import rebuilders


def read(data: bytes) -> Any:
    return load(data, rebuild=rebuilders(), persistent=lambda pid: pid)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("code", ["f4", ">f4", "i8", ">i2", "c16", "b1", "<f2", ">f8", "u1"])
def test_arrays_and_scalars_are_those_of_numpy(code: str, protocol: int) -> None:
    array = np.arange(6).reshape(2, 3).astype(code)
    for made in (array, np.asfortranarray(array), array[:0]):
        found = read(pickle.dumps(made, protocol))
        assert isinstance(found, Array)
        assert (found.dtype, found.shape) == (str(array.dtype.newbyteorder("=")), made.shape)
        assert found.big_endian == (code[0] == ">" and array.dtype.itemsize > 1)
        assert bytes(found.data) == made.tobytes("A")
    if array.dtype.kind in "fiub":
        scalar = pickle.dumps(array.dtype.type(1), protocol)
        assert read(scalar) == 1


@pytest.mark.parametrize("protocol", range(6))
def test_a_big_endian_scalar_is_swapped(protocol: int) -> None:
    kind = np.dtype(">i4")
    assert read(pickle.dumps(np.frombuffer(b"\0\0\1\2", kind)[0], protocol)) == 258
    reduced = Reduced(np._core.multiarray.scalar, (kind, b"\0\0\1\2"))
    assert read(pickle.dumps([reduced, reduced], protocol)) == [258, 258]


class Reduced:
    def __init__(self, *reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


@pytest.mark.parametrize("protocol", range(6))
def test_a_second_reference_is_the_same_array(protocol: int) -> None:
    array = np.arange(3, dtype=">f8")
    first, second, other = read(pickle.dumps([array, array, np.arange(2, dtype=array.dtype)], protocol))
    assert first is second
    assert (first.shape, first.big_endian, other.big_endian) == ((3,), True, True)


def test_arrays_of_what_torch_has_no_word_for_are_only_named() -> None:
    for array in (
        np.array(["a", "bc"]),
        np.array([{}, None], dtype=object),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "f4,i2"),
    ):
        found = read(pickle.dumps(array, 2))
        assert (found.dtype, found.shape) == ("", (2,))


def state(shape: Any, data: Any, code: str = "f4") -> bytes:
    made = Reduced(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, np.dtype(code), False, data))
    return pickle.dumps(made, 2)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((-1,), b""),
        ((2, "x"), bytes(8)),
        ([2], bytes(8)),
        ((2.0,), bytes(8)),
        ((2**62, 2**62, 0), b""),
        ((1,) * 65, bytes(4)),
        ((2,), bytes(7)),
        ((2,), bytes(9)),
        ((2,), None),
        ((True,), bytes(4)),
    ],
)
def test_an_array_that_contradicts_itself_is_refused(shape: Any, data: Any) -> None:
    with pytest.raises(FormatError) as caught:
        read(state(shape, data))
    assert caught.value.rule


def test_a_scalar_of_another_length_is_refused() -> None:
    with pytest.raises(FormatError, match="has 3 bytes"):
        read(pickle.dumps(Reduced(np._core.multiarray.scalar, (np.dtype("f4"), b"abc")), 2))


def test_data_spelled_in_characters_that_are_no_bytes_is_refused() -> None:
    found = read(state((1,), "ab\u1234d"))
    with pytest.raises(FormatError, match="not Latin-1"):
        _ = found.data
