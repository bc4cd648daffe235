"""Rebuilds numpy's scalars, dtypes and arrays in pickles; numpy itself is not imported.

When a pickle sets the state of a dtype or an array (BUILD), the stand-in is changed in place, as numpy's object would
be: the pickle may refer to the same object before and after BUILD.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from math import prod

from ...errors import FormatError
from ...tensors.dtypes import DTYPES
from ...util.text import shape_text
from ..base.untrusted import check_elements, check_sizes
from .values import GlobalName, PlacedBytes

__all__ = ["ML_DTYPES", "NUMPY", "TORCH_NAMES", "Array"]

_SCALARS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip
TORCH_NAMES = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16",
    "u4": "uint32", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip
ML_DTYPES = frozenset(
    {"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"}
)
"""The dtypes of the package ml_dtypes (of JAX) that torch has under the same names."""
_LONGEST_CODE = 20


class _Type:
    """A numpy dtype: its code (``f4``) and byte order."""

    __slots__ = ("big", "code")

    def __init__(self, code: str, big: bool = False) -> None:
        self.code = code
        self.big = big

    def build(self, state: object) -> None:
        self.big = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"

    def __repr__(self) -> str:
        return f"numpy.dtype({self.code})"


class Array:
    """A numpy array whose bytes are in the pickle; ``dtype`` is torch's name for its dtype, '' if torch has none.

    If the bytes were not read, ``placed`` is their offset and length in the file, and ``data`` is empty.

    Raises FormatError if the shape is invalid, or the data has more or fewer bytes than the shape needs.
    """

    __slots__ = ("_data", "big_endian", "dtype", "fortran", "placed", "shape")

    def __init__(self, kind: object = None, shape: object = (0,), data: object = b"", order: object = "C") -> None:
        check_sizes(shape, "size")
        assert isinstance(shape, tuple)  # by check_sizes
        check_elements(shape)
        code = kind.code if isinstance(kind, _Type) else ""
        self.dtype = code if code in ML_DTYPES else TORCH_NAMES.get(code, "")
        self.big_endian = isinstance(kind, _Type) and kind.big
        self.shape: tuple[int, ...] = shape
        self.fortran = order == "F" or order is True
        self.placed = data if isinstance(data, PlacedBytes) else None
        self._data = data if isinstance(data, (bytes, bytearray, str)) else b""
        if self.dtype and not self._fits(prod(shape) * DTYPES[self.dtype].itemsize):
            raise FormatError(
                f"a numpy array of {self.dtype} and shape {shape_text(shape)} has {self.placed or len(self._data)}"
                f"{'' if self.placed else ' bytes'}, which do not fit this shape.",
                rule="numpy",
            )

    def _fits(self, nbytes: int) -> bool:
        return len(self._data) == nbytes if self.placed is None else self.placed.fits(nbytes)

    @property
    def data(self) -> bytes | bytearray:
        """The bytes of the values.

        Protocols 0 to 2 store them as a string; raises FormatError if this string is not Latin-1.
        """
        if not isinstance(self._data, str):
            return self._data
        try:
            return self._data.encode("latin-1")
        except UnicodeEncodeError:
            raise FormatError(
                "the values of a numpy array are stored as a string that is not Latin-1.", rule="numpy"
            ) from None

    def build(self, state: object) -> None:
        """Set the array from ``state``, the argument of BUILD: ``(version, shape, dtype, is_fortran, data)``.

        Raises FormatError for another layout of the state.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise FormatError("the pickle has a numpy array whose state has an unknown layout.", rule="numpy")
        _, shape, kind, fortran, data = state
        Array.__init__(self, kind, shape, data, fortran)

    def __repr__(self) -> str:
        return f"numpy.ndarray {self.dtype or 'object'} {self.shape}"


def _dtype(code: object, *_: object) -> _Type:
    if isinstance(code, GlobalName) and code.module == "ml_dtypes":
        return _Type(code.name)
    text = code[:_LONGEST_CODE] if isinstance(code, str) else ""
    return _Type(text.lstrip("<>|="), text.startswith(">"))


def _scalar(kind: object, data: object = b"") -> object:
    form = _SCALARS.get(kind.code) if isinstance(kind, _Type) else None
    array = Array(kind, (), data)
    if form is None or not isinstance(kind, _Type):
        return array
    return struct.unpack((">" if kind.big else "<") + form, array.data)[0]


def _reconstruct(*_: object) -> Array:
    return Array()


def _frombuffer(data: object, kind: object, shape: object, order: object = "C") -> Array:
    return Array(kind, shape, data, order)


NUMPY: Mapping[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
