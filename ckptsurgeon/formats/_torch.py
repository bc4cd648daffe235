"""What torch's pickles mean: storages, and the functions that would rebuild tensors from them.

Written after ``torch/_utils.py`` and ``torch/_tensor.py``; every bound that torch leaves to the C++ side is
checked here, before anything is read.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ..errors import FormatError, UnsafeError
from ..tensors import DTYPES, Storage, TensorInfo, contiguous_stride, reach
from . import _limits as limits
from ._numpy import NUMPY, Array
from ._values import Group, Name, Opaque, brief, set_items

__all__ = ["STORAGE_DTYPES", "TypedStorage", "rebuilders"]

STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "LongStorage": "int64",
    "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "BFloat16Storage": "bfloat16", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64", "QUInt8Storage": "quint8", "QInt8Storage": "qint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}  # fmt: skip
"""Names in ``torch`` (and ``torch.cuda``) by which a pickle says of what type a storage is."""

_SIZES = {name: dtype.bits // 8 for name, dtype in DTYPES.items()}
_DTYPE_NAMES = {
    "half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip


MOST = limits.ELEMENTS
REMEMBERED_FORMS = 4096
"""A file cannot make the memory of (size, stride) pairs slower than this many of them."""


class TypedStorage:
    """A storage as a pickle refers to it: bytes, the type it declares, and where its view begins (bytes)."""

    __slots__ = ("dtype", "start", "storage")

    def __init__(self, storage: Storage, dtype: str, start: int = 0) -> None:
        self.storage = storage
        self.dtype = dtype
        self.start = start

    def __repr__(self) -> str:
        return f"torch storage {self.dtype} ({self.storage.nbytes} bytes)"


class _Tensors:
    """Makes TensorInfo; remembers what it worked out for each (size, stride), of which real files have few."""

    def __init__(self) -> None:
        self._forms: dict[tuple[Any, Any], tuple[int, bool]] = {}

    def rebuild(
        self, ref: Any, offset: Any, size: Any, stride: Any, *, dtype: str = "", flags: Any = None
    ) -> TensorInfo:
        """Return the header of a strided tensor; ``offset`` and ``stride`` in elements."""
        if type(ref) is not TypedStorage:
            return _unknown(f"over {brief(ref)}", dtype, size)
        dtype = dtype or ref.dtype
        extent, contiguous = self._form(size, stride)
        storage, itemsize = ref.storage, _SIZES[dtype]
        if type(offset) is not int or offset < 0:
            raise FormatError(f"a tensor starts at {brief(offset)} of {_named(storage)}.", rule="tensor offset")
        begin = ref.start + offset * itemsize
        if extent and begin + extent * itemsize > storage.nbytes:
            raise FormatError(
                f"a tensor of shape {size} and stride {stride} reaches beyond {_named(storage)} "
                f"({storage.nbytes} bytes).",
                rule="tensor beyond storage",
            )
        if contiguous and not flags:
            return TensorInfo(dtype, size, storage, begin)
        info = TensorInfo(dtype, size, storage, begin, None if contiguous else stride)
        if info.nbytes > max(limits.EXPANSION_FREE, limits.EXPANSION * storage.nbytes):
            raise UnsafeError(
                f"a tensor of shape {size} claims {info.nbytes} bytes over the {storage.nbytes} of {_named(storage)}.",
                rule="tensor expansion",
            )
        return _flagged(info, flags) if flags else info

    def _form(self, size: Any, stride: Any) -> tuple[int, bool]:
        """Return how far a (size, stride) reaches, in elements, and whether it is contiguous."""
        _check_numbers(size, "size")  # before they are hashed: a nested tuple's hash can take forever
        _check_numbers(stride, "stride")
        known = self._forms.get((size, stride))
        if known is not None:
            return known
        if len(size) != len(stride):
            raise FormatError(f"a tensor has {len(size)} dimensions and {len(stride)} strides.", rule="tensor stride")
        if 0 not in size and prod(size) > limits.ELEMENTS:
            raise FormatError(f"a tensor of shape {size} has too many elements.", rule="tensor size")
        plain = contiguous_stride(size)
        same = 0 in size or all(a == b or n == 1 for a, b, n in zip(stride, plain, size, strict=True))
        form = (reach(size, plain if same else stride), same)
        if len(self._forms) < REMEMBERED_FORMS:
            self._forms[size, stride] = form
        return form


def _check_numbers(values: Any, what: str) -> None:
    if type(values) is not tuple or len(values) > limits.DIMENSIONS:
        raise FormatError(
            f"a tensor's {what} is no tuple of at most {limits.DIMENSIONS} numbers.", rule=f"tensor {what}"
        )
    for value in values:
        if type(value) is not int or value < 0 or value > MOST:
            raise FormatError(f"a tensor's {what} holds what is no size.", rule=f"tensor {what}")


def _named(storage: Storage) -> str:
    return f"storage {storage.name}"


def _flagged(info: TensorInfo, flags: Any) -> TensorInfo:
    if not isinstance(flags, dict):
        raise FormatError(f"a tensor's metadata is {brief(flags)}.", rule="tensor metadata")
    return replace(info, conj=flags.get("conj") is True, neg=flags.get("neg") is True)


def _unknown(why: str, dtype: str, size: Any) -> TensorInfo:
    """Return the header of a tensor whose values hang on something that is not interpreted."""
    _check_numbers(size, "size")
    return TensorInfo(dtype if dtype in DTYPES else "float32", size, opaque=why)


def _dtype(name: Any) -> str:
    """Return the dtype that a name such as ``torch.float8_e4m3fn`` stands for."""
    text = _DTYPE_NAMES.get(getattr(name, "name", ""), getattr(name, "name", ""))
    if getattr(name, "module", "") != "torch" or text not in DTYPES:
        raise FormatError(f"a tensor is of unknown type {brief(name)}.", rule="tensor dtype")
    return text


def rebuilders() -> dict[tuple[str, str], Callable[..., object]]:
    """Return a fresh table of all functions that the machine may run for a name."""
    make = _Tensors()

    def tensor_v2(ref: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> object:
        return make.rebuild(ref, offset, size, stride, flags=rest[2] if len(rest) > 2 else None)

    def tensor_v3(ref: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> object:
        if len(rest) < 3:
            raise FormatError("a tensor does not say its type.", rule="tensor dtype")
        flags = rest[3] if len(rest) > 3 else None
        return make.rebuild(ref, offset, size, stride, dtype=_dtype(rest[2]), flags=flags)

    def quantised(ref: Any, offset: Any, size: Any, stride: Any, params: Any, *_: Any) -> object:
        info = make.rebuild(ref, offset, size, stride)
        return replace(info, opaque="quantised", parts=(params,))

    def from_type(function: Any, kind: Any, args: Any, _state: Any) -> object:
        ours = table.get((getattr(function, "module", ""), getattr(function, "name", "")))
        if ours is None or type(args) is not tuple:
            return Opaque(kind, args)
        return ours(*args)

    table: dict[tuple[str, str], Callable[..., object]] = {**NUMPY, **_plain()}
    table.update(
        {
            ("torch._utils", "_rebuild_tensor"): tensor_v2,
            ("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
            ("torch._utils", "_rebuild_qtensor"): quantised,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
            ("torch._utils", "_rebuild_meta_tensor_no_storage"): lambda dtype, size, *_: _unknown(
                "meta: saved without values", _dtype(dtype), size
            ),
            ("torch._utils", "_rebuild_wrapper_subclass"): lambda kind, dtype, size, *_: _unknown(
                f"of class {brief(kind)}", _dtype(dtype), size
            ),
            ("torch._utils", "_rebuild_nested_tensor"): lambda data, *_: TensorInfo(
                getattr(data, "dtype", "float32"), (), opaque="nested"
            ),
            ("torch._utils", "_rebuild_device_tensor_from_numpy"): _from_numpy,
            ("torch._utils", "_rebuild_xla_tensor"): _from_numpy,
            ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): lambda data, *_: data,
            ("torch._tensor", "_rebuild_from_type_v2"): from_type,
            ("torch._tensor", "_rebuild_from_type"): lambda function, kind, args, state: from_type(
                function, kind, args, state
            ),
        }
    )
    return table


def _sparse(layout: Any, data: Any) -> TensorInfo:
    """Return the header of a sparse tensor; its parts are the layout and the tensors it is made of."""
    if type(data) is not tuple or not 3 <= len(data) <= 4:
        raise FormatError("a sparse tensor is not made of indices, values and a size.", rule="sparse")
    coo = str(layout).endswith("coo")
    values, size = (data[1], data[2]) if coo else (data[2], data[3] if len(data) > 3 else ())
    if not isinstance(values, TensorInfo):
        raise FormatError("a sparse tensor has no values.", rule="sparse")
    _check_numbers(size, "size")
    return TensorInfo(values.dtype, size, opaque="sparse", parts=(str(layout), data))


def _from_numpy(data: Any, dtype: Any, *_: Any) -> object:
    if not isinstance(data, Array):
        return Opaque("numpy.ndarray", (data,))
    return TensorInfo(_dtype(dtype), data.shape, opaque="an array inside the pickle", parts=(data,))


def _ordered_dict(*args: Any) -> object:
    """Return a mapping: empty, a copy, or made from pairs as Python 2 pickled them."""
    if not args:
        return {}
    made: dict[Any, Any] = {}
    pairs = args[0]
    if isinstance(pairs, dict):
        made.update(pairs)
    elif isinstance(pairs, (list, tuple)):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise FormatError("a mapping is made of something other than pairs.", rule="pickle")
        set_items(made, pairs)
    return made


def _encode(text: Any, encoding: Any = "utf-8", *_: Any) -> object:
    """Return the bytes that protocols 0 to 2 pickle as text: ``_codecs.encode(text, 'latin1')``."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        return Opaque(Name("_codecs", "encode"), (text, encoding))
    return codecs.encode(text, encoding)


def _plain() -> dict[tuple[str, str], Callable[..., object]]:
    """Return the names that stand for plain data, in the spellings of Python 2 and 3."""
    table: dict[tuple[str, str], Callable[..., object]] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "defaultdict"): lambda *args: _ordered_dict(*args[1:]),
        ("collections", "Counter"): _ordered_dict,
        ("_codecs", "encode"): _encode,
        ("torch", "Size"): lambda *args: tuple(args[0]) if args and isinstance(args[0], (list, tuple)) else (),
        ("torch", "device"): lambda *args: ":".join(map(str, args)),
        ("torch.serialization", "_get_layout"): lambda name: name if isinstance(name, str) else "",
    }
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "set"] = table[builtins, "frozenset"] = lambda *args: Group(
            args[0] if args and isinstance(args[0], (list, tuple)) else ()
        )
        table[builtins, "complex"] = lambda *args: (
            complex(*args) if all(type(a) in (int, float) for a in args[:2]) else Opaque("complex", args)
        )
        table[builtins, "bytes"] = table[builtins, "bytearray"] = lambda *args: (
            args[0] if args and isinstance(args[0], bytes) else b""
        )
    return table
