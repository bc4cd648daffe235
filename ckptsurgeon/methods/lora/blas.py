"""Keeps the BLAS of numpy to the thread that calls it, where several threads call it at once. No files.

Two threads that multiply while OpenBLAS spreads each product over two of its own wait for each other: 64 by 256 by 2048
took 20 ms then, and 0.8 without.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

import numpy as np
from numpy.linalg import _umath_linalg

from ...tensors.ops.boxes import Array

__all__ = ["multiplied"]

ALONE = 1 << 18
"""Multiplications that OpenBLAS does in one thread, whatever it may use: ``interface/gemm.c``, SMP_THRESHOLD_MIN."""

_NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")
"""The names of a function of OpenBLAS in numpy's wheels since 2.0, in those before, and in Debian."""


def multiplied(left: Array, right: Array) -> Array:
    """Return the product of two matrices, computed by this thread alone."""
    with _LIMITS.alone() as alone:
        return left @ right if alone else _in_parts(left, right)


def _in_parts(left: Array, right: Array) -> Array:
    """Return the product in parts that are too small to be spread over threads."""
    total = np.empty((len(left), right.shape[1]), left.dtype)
    rows = min(len(left), 64)
    columns = max(8, ALONE // (rows * len(right)))
    for top in range(0, len(left), rows):
        for begin in range(0, right.shape[1], columns):
            part = right[:, begin : begin + columns]
            np.matmul(left[top : top + rows], part, out=total[top : top + rows, begin : begin + columns])
    return total


class _Limits:
    """The number of threads of a library, one while somebody multiplies, else what it was."""

    def __init__(self, get: Callable[[], int] | None, put: Callable[[int], object]) -> None:
        self._get, self._put = get, put
        self._lock, self._users, self._former = Lock(), 0, 1

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Tell whether the library is kept to one thread."""
        if self._get is None:
            yield False
            return
        with self._lock:
            if not self._users:
                self._former = self._get()
                self._put(1)
            self._users += 1
        try:
            yield True
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._put(self._former)


def _found() -> _Limits:
    """Return what keeps the OpenBLAS that numpy is linked with; of another BLAS, or none, what keeps nothing."""
    try:
        core = ctypes.CDLL(_umath_linalg.__file__)  # a symbol is looked for in what it is linked with, too
    except (AttributeError, OSError):
        return _Limits(None, lambda number: None)
    for name in _NAMES:
        get, put = (getattr(core, name.format(f"{verb}_num_threads"), None) for verb in ("get", "set"))
        if get is not None and put is not None:
            return _Limits(get, put)
    return _Limits(None, lambda number: None)


_LIMITS = _found()
"""Found when this is imported, once: whoever multiplies shares one lock."""
