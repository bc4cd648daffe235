"""Reads and writes the header of a ``.npy`` array, format versions 1 to 3 (numpy/lib/format.py).

The header is a Python literal. It is matched by a pattern, and never evaluated.
"""

from __future__ import annotations

import re
import struct
from math import prod

from ..errors import FormatError
from ..tensors.dtypes import contiguous_stride
from ..tensors.info import Storage, TensorInfo
from .base import limits
from .base.untrusted import check_elements, check_sizes
from .pickle.numpy import TORCH_NAMES
from .pickle.values import GlobalName, OpaqueResult

__all__ = ["DTYPES_OF_NPY", "MAGIC", "npy_entry", "npy_header"]

MAGIC = b"\x93NUMPY"
_HEAD = re.compile(
    r"\{'descr': '(?P<order>[<>|=]?)(?P<code>[A-Za-z]\d*)', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\d, ]*)\), \} *\n"
)
_CODES = {dtype: code for code, dtype in TORCH_NAMES.items()}
DTYPES_OF_NPY = frozenset(_CODES)
"""The dtypes that numpy stores: it has no bfloat16 and no float8."""
_ALIGN = 64
_GROWTH = 21
"""The number of characters that numpy reserves for the first size of a shape, so that rows can be appended in place."""
_OTHER = re.compile(r"\{'descr': (?P<descr>.{1,200}?), 'fortran_order': ", re.DOTALL)


def npy_entry(head: bytes, storage: Storage) -> TensorInfo | OpaqueResult:
    """Return the TensorInfo of the ``.npy`` array in ``storage``, whose first bytes are ``head``.

    For an array of a type that torch lacks, such as strings, an OpaqueResult is returned. Raises FormatError if the
    header is malformed, or if the array has more or fewer bytes than its header says.
    """
    text, begin = _header(head)
    found = _HEAD.fullmatch(text)
    if found is None or found["code"] not in TORCH_NAMES:
        kind = found["code"] if found else (other["descr"] if (other := _OTHER.match(text)) else "")
        if not kind or kind.strip("'<>|=") in TORCH_NAMES:
            raise FormatError("the header of a numpy array is malformed.", rule="npy header")
        return OpaqueResult(GlobalName("numpy", f"array of {kind[:60]}"))
    dtype, itemsize = TORCH_NAMES[found["code"]], int(found["code"][1:])
    shape = tuple(int(size[:20]) for size in found["shape"].replace(" ", "").split(",") if size)
    check_sizes(shape, "size")
    check_elements(shape)
    if begin + prod(shape) * itemsize != storage.nbytes:
        raise FormatError(
            f"a numpy array of shape {shape} needs {prod(shape) * itemsize} bytes, but has {storage.nbytes - begin}.",
            rule="npy size",
        )
    storage.big_endian = found["order"] == ">"
    stride = None
    if found["fortran"] == "True" and len(shape) > 1 and prod(shape):
        stride = tuple(reversed(contiguous_stride(shape[::-1])))
    return TensorInfo(dtype, shape, storage, begin, stride)


def _header(head: bytes) -> tuple[str, int]:
    """Return the text of a header, and the offset at which the values begin; raises FormatError if it is not valid."""
    if len(head) < 12 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        raise FormatError(
            "a numpy array does not begin with its magic bytes and a format version from 1 to 3.", rule="npy header"
        )
    form, start = ("<H", 10) if head[6] == 1 else ("<I", 12)
    length = struct.unpack_from(form, head, 8)[0]
    if length > limits.NPY_HEADER_BYTES or start + length > len(head):
        raise FormatError(
            f"a numpy array has a header of {length} bytes, which is truncated or exceeds the limit of "
            f"{limits.NPY_HEADER_BYTES}.",
            rule="npy header",
        )
    return head[start : start + length].decode("latin-1"), start + length


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the header that ``numpy.save`` writes before the values of an array; its size is a multiple of 64 bytes.

    ``dtype`` is one of ``DTYPES_OF_NPY``. The values follow in C order, little-endian.
    """
    code = _CODES[dtype]
    order = "|" if code.endswith("1") else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {shape!r}, }}"
    text += " " * (_GROWTH - len(str(shape[0]))) if shape else ""
    padding = -(len(MAGIC) + 4 + len(text) + 1) % _ALIGN
    return MAGIC + struct.pack("<BBH", 1, 0, len(text) + padding + 1) + (text + " " * padding + "\n").encode()
