"""numpy's pickled scalars, dtypes and arrays, as plain data. numpy itself is not needed to understand them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ..errors import FormatError

__all__ = ["NUMPY", "Array"]

_SCALARS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip
_TORCH = {
    "b1": "bool", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16",
    "u4": "uint32", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64",
    "c8": "complex64", "c16": "complex128",
}  # fmt: skip


class _Type:
    """A numpy dtype: its code (``f4``) and byte order."""

    __slots__ = ("big", "code")

    def __init__(self, code: str, big: bool = False) -> None:
        self.code = code
        self.big = big

    def build(self, state: object) -> _Type:
        big = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
        return _Type(self.code, big)

    def __repr__(self) -> str:
        return f"numpy.dtype({self.code})"


class Array:
    """A numpy array whose bytes lie in the pickle. ``dtype`` is torch's name for it, '' when torch has none."""

    __slots__ = ("big_endian", "data", "dtype", "fortran", "shape")

    def __init__(self, kind: object = None, shape: object = (), data: object = b"", order: object = "C") -> None:
        self.dtype = _TORCH.get(kind.code, "") if isinstance(kind, _Type) else ""
        self.big_endian = isinstance(kind, _Type) and kind.big
        self.shape = tuple(s for s in shape if type(s) is int) if isinstance(shape, tuple) else ()
        self.data = data if isinstance(data, (bytes, bytearray)) else b""
        self.fortran = order == "F" or order is True

    def build(self, state: object) -> Array:
        """Return the array with its state, ``(version, shape, dtype, is_fortran, data)``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise FormatError("the pickle holds a numpy array of unknown make.", rule="numpy")
        _, shape, kind, fortran, data = state
        return Array(kind, shape, data.encode("latin-1") if isinstance(data, str) else data, fortran)

    def __repr__(self) -> str:
        return f"numpy.ndarray {self.dtype or 'object'} {self.shape}"


def _dtype(code: object, *_: object) -> _Type:
    text = code if isinstance(code, str) else ""
    return _Type(text.lstrip("<>|="), text.startswith(">"))


def _scalar(kind: object, data: object = b"") -> object:
    raw = data.encode("latin-1") if isinstance(data, str) else data
    form = _SCALARS.get(kind.code) if isinstance(kind, _Type) else None
    if form is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(form):
        return Array(kind, (), raw)
    assert isinstance(kind, _Type)
    return struct.unpack((">" if kind.big else "<") + form, raw)[0]


def _reconstruct(*_: object) -> Array:
    return Array()


def _frombuffer(data: object, kind: object, shape: object, order: object = "C") -> Array:
    return Array(kind, shape, data, order)


def _names() -> dict[tuple[str, str], Callable[..., object]]:
    names: dict[tuple[str, str], Callable[..., object]] = {("numpy", "dtype"): _dtype}
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = _frombuffer
    return names


NUMPY: Mapping[tuple[str, str], Callable[..., object]] = _names()
