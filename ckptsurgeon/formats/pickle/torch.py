"""Describes the tensors in torch's pickles (dtype, shape, place in a storage) without reading their values.

Follows ``torch/_utils.py``. This module also makes the checks that torch makes in C++, before any value is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from ...errors import FormatError, UnsafeError
from ...tensors.dtypes import DTYPES, contiguous_stride, reach
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape
from ..base import limits
from ..base.untrusted import CopyBudget, check_elements, check_sizes
from ..torch.distributed import part_reader
from ..torch.other_tensors import OTHERS, dtype_of, unknown, with_attributes, wrapped
from .numpy import NUMPY
from .values import QUANTISED, GlobalName, OpaqueResult, brief, plain_functions

__all__ = ["STORAGE_DTYPES", "StridedForm", "TensorBuilder", "TypedStorage", "form_of", "rebuilders", "view"]

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
            f"a tensor of shape {size} and stride {stride} repeats values of {_named(storage)}: it has {info.nbytes:,} "
            f"bytes, over {limits.EXPANSION:,} times as many as the {storage.nbytes:,} bytes of the storage.",
            hint="If you trust the file, load it with torch, and save the tensor again after tensor.contiguous().",
            rule="tensor expansion",
        )
    return _flagged(info, flags) if flags else info


def _named(storage: Storage) -> str:
    return f"storage {escape(storage.name)}"


def _flagged(info: TensorInfo, flags: Any) -> TensorInfo:
    if not isinstance(flags, dict):
        raise FormatError(f"a tensor has invalid metadata: {brief(flags)}.", rule="tensor metadata")
    return replace(info, conj=flags.get("conj") is True, neg=flags.get("neg") is True)


Functions = dict[tuple[str, str], Callable[..., object]]
_FROM_TYPE = ("_rebuild_from_type", "_rebuild_from_type_v2")


def rebuilders() -> Functions:
    """Return a new dict, {(module, name) of a function in a pickle: ckptsurgeon's function in its place}.

    These functions make headers instead of tensors (``torch/_utils.py``, ``torch/_tensor.py``), and plain data.
    """
    budget = CopyBudget()
    table: Functions = {**NUMPY, **plain_functions(budget)}
    parts = cache(partial(part_reader, budget))  # made for the first subclass of a tensor
    for name, function in {**_strided(TensorBuilder()), **OTHERS}.items():
        table["torch._utils", name] = function

    def from_type(function: Any, kind: Any, args: Any, state: Any) -> object:
        if type(function) is not GlobalName or type(args) is not tuple:
            return OpaqueResult(kind, args)
        if function.name in _FROM_TYPE:  # torch never nests them; three thousand would exhaust the stack
            raise FormatError(
                "the pickle rebuilds a tensor from another rebuilt tensor, which torch never writes.", rule="rebuilding"
            )
        ours = table.get((function.module, function.name))
        made = OpaqueResult(kind, args) if ours is None else ours(*args)
        if ours is not wrapped or not isinstance(made, TensorInfo):
            return made
        return parts()(kind, made, state) or with_attributes(made, kind, state)

    for name in _FROM_TYPE:
        table["torch._tensor", name] = from_type
    return table


def _strided(make: TensorBuilder) -> dict[str, Callable[..., object]]:
    def tensor_v2(ref: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> object:
        return make.rebuild(ref, offset, size, stride, flags=rest[2] if len(rest) > 2 else None)

    def tensor_v3(ref: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> object:
        if len(rest) < 3:
            raise FormatError("the pickle has a tensor without a dtype.", rule="tensor dtype")
        flags = rest[3] if len(rest) > 3 else None
        return make.rebuild(ref, offset, size, stride, dtype=dtype_of(rest[2]), flags=flags)

    def quantised(ref: Any, offset: Any, size: Any, stride: Any, params: Any, *_: Any) -> object:
        if type(ref) is TypedStorage and DTYPES[ref.dtype].bits < 8:
            return _packed(make, ref, offset, size, stride, params)
        info = make.rebuild(ref, offset, size, stride)
        return info if info.opaque else replace(info, opaque=QUANTISED, parts=(params,))

    return {
        "_rebuild_tensor": tensor_v2,
        "_rebuild_tensor_v2": tensor_v2,
        "_rebuild_tensor_v3": tensor_v3,
        "_rebuild_qtensor": quantised,
    }


def _packed(make: TensorBuilder, ref: TypedStorage, offset: Any, size: Any, stride: Any, params: Any) -> TensorInfo:
    """Return the header of a quantised tensor with several codes per byte; ``params`` has its scales and zero points.

    ``size`` and ``stride`` are in codes, but the pickle gives the size of the storage in bytes.
    """
    check_sizes(size, "size")
    check_sizes(stride, "stride")
    check_elements(size)
    if offset != 0 or tuple(stride) != contiguous_stride(size):
        return unknown("its codes have fewer than 8 bits, and it is a view of another tensor", ref.dtype, size)
    nbytes = (math.prod(size) * DTYPES[ref.dtype].bits + 7) // 8
    flat = make.rebuild(ref, 0, (nbytes,), (1,), dtype="uint8")
    return replace(flat, dtype=ref.dtype, shape=tuple(size), opaque=QUANTISED, parts=(params,))
