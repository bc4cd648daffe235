"""Describes the tensors in torch's pickles (dtype, shape, place in a storage) without reading their values.

Follows ``torch/_utils.py``. This module also makes the checks that torch makes in C++, before any value is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ...errors import FormatError, UnsafeError
from ...tensors.dtypes import DTYPES, contiguous_stride, reach
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape
from ..base import limits
from ..base.untrusted import check_elements, check_sizes
from .values import brief

__all__ = ["STORAGE_DTYPES", "StridedForm", "TensorBuilder", "TypedStorage", "dtype_of", "form_of", "unknown", "view"]

STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "BFloat16Storage": "bfloat16", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QUInt8Storage": "quint8", "QInt8Storage": "qint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}  # fmt: skip
"""The dtypes of the storage classes in a pickle, by their names in ``torch`` (and ``torch.cuda``)."""

_SIZES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
_DTYPE_NAMES = {
    "half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip

REMEMBERED_FORMS = 1024
REMEMBERED_SIZE = 2**31
"""How many pairs (size, stride) are remembered, and the limit for the numbers in them.

The hash of a tuple of integers can be predicted. If larger numbers, or any strides for a size of 0, were remembered, a
file could make thousands of pairs collide.
"""


class TypedStorage:
    """A storage with the dtype that a pickle states; offsets of tensors count from byte ``start`` of the storage."""

    __slots__ = ("dtype", "start", "storage")

    def __init__(self, storage: Storage, dtype: str, start: int = 0) -> None:
        self.storage = storage
        self.dtype = dtype
        self.start = start

    def __repr__(self) -> str:
        return f"torch storage {self.dtype} ({self.storage.nbytes} bytes)"


class StridedForm(NamedTuple):
    """A valid size and stride; ``extent`` is the number of storage elements from the first to the last element used."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    extent: int
    contiguous: bool


def form_of(size: Any, stride: Any) -> StridedForm:
    """Return the StridedForm of a size and a stride; raises FormatError if they are invalid or do not fit together."""
    check_sizes(size, "size")
    check_sizes(stride, "stride")
    if len(size) != len(stride):
        raise FormatError(f"a tensor has {len(size)} dimensions, but {len(stride)} strides.", rule="tensor stride")
    check_elements(size)
    plain = contiguous_stride(size)
    same = 0 in size or all(a == b or n == 1 for a, b, n in zip(stride, plain, size, strict=True))
    return StridedForm(size, stride, reach(size, plain if same else stride), same)


class TensorBuilder:
    """Makes TensorInfo objects, and remembers each (size, stride) that was checked: a file has few different pairs."""

    def __init__(self) -> None:
        self._forms: dict[tuple[Any, Any], StridedForm] = {}

    def rebuild(
        self, ref: Any, offset: Any, size: Any, stride: Any, *, dtype: str = "", flags: Any = None
    ) -> TensorInfo:
        """Return the header of a strided tensor; ``ref`` is its storage, ``offset`` and ``stride`` are in elements.

        ``dtype`` replaces the storage's dtype unless it is ''. ``flags`` is torch's dict with ``conj`` and ``neg``.
        """
        if type(ref) is not TypedStorage:
            return unknown(f"its storage is {brief(ref)}, not a storage of torch", dtype, size)
        return view(ref, offset, self._form(size, stride), dtype=dtype, flags=flags)

    def _form(self, size: Any, stride: Any) -> StridedForm:
        """Return the StridedForm of a size and a stride; a pair that was checked earlier is looked up."""
        check_sizes(size, "size")  # before hashing: the hash of a nested tuple can take forever
        check_sizes(stride, "stride")
        known = self._forms.get((size, stride))
        if known is not None:
            return known
        form = form_of(size, stride)
        usual = 0 not in size and max((*size, *stride), default=0) < REMEMBERED_SIZE
        if usual and len(self._forms) < REMEMBERED_FORMS:
            self._forms[size, stride] = form
        return form


def view(ref: TypedStorage, offset: Any, form: StridedForm, *, dtype: str = "", flags: Any = None) -> TensorInfo:
    """Return the header of a tensor in the storage ``ref``; raises FormatError or UnsafeError if it does not fit.

    ``offset`` is in elements. ``flags`` is torch's dict with ``conj`` and ``neg``.
    """
    dtype = dtype or ref.dtype
    size, stride, extent, contiguous = form
    storage, itemsize = ref.storage, _SIZES[dtype]
    if type(offset) is not int or not 0 <= offset <= limits.ELEMENTS:
        raise FormatError(
            f"a tensor has an invalid offset in {_named(storage)}: {brief(offset)}.", rule="tensor offset"
        )
    begin = ref.start + offset * itemsize
    if extent and begin + extent * itemsize > storage.nbytes:
        raise FormatError(
            f"a tensor of shape {size} and stride {stride} reaches beyond {_named(storage)} ({storage.nbytes} bytes).",
            rule="tensor beyond storage",
        )
    if contiguous and not flags:
        return TensorInfo(dtype, size, storage, begin)
    info = TensorInfo(dtype, size, storage, begin, None if contiguous else stride)
    if info.nbytes > max(limits.EXPANSION_FREE, limits.EXPANSION * storage.nbytes):
        raise UnsafeError(
            f"a tensor of shape {size} has {info.nbytes} bytes, but {_named(storage)} has only {storage.nbytes}.",
            rule="tensor expansion",
        )
    return _flagged(info, flags) if flags else info


def _named(storage: Storage) -> str:
    return f"storage {escape(storage.name)}"


def _flagged(info: TensorInfo, flags: Any) -> TensorInfo:
    if not isinstance(flags, dict):
        raise FormatError(f"a tensor has invalid metadata: {brief(flags)}.", rule="tensor metadata")
    return replace(info, conj=flags.get("conj") is True, neg=flags.get("neg") is True)


def unknown(why: str, dtype: str, size: Any) -> TensorInfo:
    """Return the header of a tensor whose values cannot be read; ``why`` is the reason."""
    check_sizes(size, "size")
    check_elements(size)
    return TensorInfo(dtype if dtype in DTYPES else "float32", size, opaque=why)


def dtype_of(name: Any) -> str:
    """Return the dtype with a name such as ``torch.float8_e4m3fn``; raises FormatError if it is unknown."""
    text = _DTYPE_NAMES.get(getattr(name, "name", ""), getattr(name, "name", ""))
    if getattr(name, "module", "") != "torch" or text not in DTYPES:
        raise FormatError(f"a tensor has the unknown dtype {brief(name)}.", rule="tensor dtype")
    return text
