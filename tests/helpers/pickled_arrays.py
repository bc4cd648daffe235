"""Pickles of arrays, instruction by instruction: as Python 2 wrote them, and with shapes and states of choice."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ndarray", "of_python2", "reduced", "text_of"]

_MAKE = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def _string(data: bytes) -> bytes:
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data
    return b"T" + len(data).to_bytes(4, "little") + data


def _dtype(dtype: np.dtype[Any]) -> bytes:
    code = dtype.str.lstrip("<>|=").encode()
    order = b">" if dtype.str[0] == ">" else b"<"
    return (
        b"cnumpy\ndtype\n("
        + _string(code)
        + b"K\x00K\x01tR(K\x03"
        + _string(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )


def _array(array: np.ndarray[Any, Any]) -> bytes:
    turned = b"\x88" if array.flags.f_contiguous and not array.flags.c_contiguous else b"\x89"
    return _MAKE + b"(K\x01" + _plain(array.shape) + _dtype(array.dtype) + turned + _string(array.tobytes("A")) + b"tb"


def of_python2(tree: Mapping[str, Any]) -> bytes:
    """A dict of arrays, and of such dicts, as Python 2 pickles it with protocol 2."""

    def made(value: Any) -> bytes:
        if isinstance(value, Mapping):
            return b"}(" + b"".join(_string(key.encode()) + made(one) for key, one in value.items()) + b"u"
        return _array(value)

    return b"\x80\x02" + made(tree) + b"."


def reduced(state: Any) -> bytes:
    """A dict with one array that has this state."""
    return b"\x80\x02}U\x01w" + _MAKE + _plain(state) + b"bs."


def ndarray(shape: tuple[int, ...], data: bytes) -> bytes:
    """A dict with one array of float32 with this shape and these bytes."""
    dtype = _dtype(np.dtype("<f4"))
    return (
        b"\x80\x03}U\x01w"
        + _MAKE
        + b"(K\x01"
        + _plain(shape)
        + dtype
        + b"\x89B"
        + len(data).to_bytes(4, "little")
        + data
        + b"tbs."
    )


def text_of(text: str, nbytes: int) -> bytes:
    """A dict with one array of uint8 with so many bytes, which are this text in Latin-1."""
    raw = text.encode()
    encoded = b"c_codecs\nencode\n(X" + len(raw).to_bytes(4, "little") + raw + b"X\x06\0\0\0latin1tR"
    return (
        b"\x80\x02}U\x01w"
        + _MAKE
        + b"(K\x01"
        + _plain((nbytes,))
        + _dtype(np.dtype("u1"))
        + b"\x89"
        + encoded
        + b"tbs."
    )
