"""Defines ckptsurgeon's versions of the functions that torch's pickles call: they make headers instead of tensors.

Follows ``torch/_utils.py`` and ``torch/_tensor.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ...errors import FormatError
from ...tensors.dtypes import DTYPES, contiguous_stride
from ...tensors.info import TensorInfo
from ..base.untrusted import CopyBudget, check_elements, check_sizes
from ..pickle.plain import NUMPY, Array, plain_functions
from ..pickle.torch import TensorBuilder, TypedStorage, dtype_of, unknown
from ..pickle.values import ARRAY, META, NESTED, QUANTISED, SPARSE, GlobalName, OpaqueResult, brief
from .distributed import part_reader

__all__ = ["rebuilders"]

Functions = dict[tuple[str, str], Callable[..., object]]

ATTRIBUTES = 24
"""The attributes of a tensor subclass are kept if there are at most this many; torchao's classes have ten.

There is a limit because many tensors of a file may refer to the same large dict of attributes.
"""
_FROM_TYPE = ("_rebuild_from_type", "_rebuild_from_type_v2")


def rebuilders() -> Functions:
    """Return a new dict, {(module, name) of a function in a pickle: ckptsurgeon's function in its place}."""
    budget = CopyBudget()
    table: Functions = {**NUMPY, **plain_functions(budget)}
    distributed = part_reader(budget)
    for name, function in {**_strided(TensorBuilder()), **_OTHERS}.items():
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
        if ours is not _wrapped or not isinstance(made, TensorInfo):
            return made
        return distributed(kind, made, state) or _with_attributes(made, kind, state)

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


def _itself(data: Any, *_: Any) -> object:
    return data


def _meta(dtype: Any, size: Any, *_: Any) -> TensorInfo:
    return unknown(META, dtype_of(dtype), size)


def _wrapped(kind: Any, dtype: Any, size: Any, *_: Any) -> TensorInfo:
    return unknown(f"it is of the class {brief(kind)}", dtype_of(dtype), size)


def _with_attributes(made: Any, kind: Any, state: Any) -> TensorInfo:
    """Return ``made``, the header of a tensor, with its subclass and simple attributes as ``parts``.

    ``kind`` is the subclass of torch.Tensor, ``state`` the dict of all attributes.
    ``parts`` is (name of the class, ((name, value) of each attribute, ...)). A value is a tensor, a number, a string,
    or the name of an object.
    """
    assert isinstance(made, TensorInfo)
    found = [(name, brief(value) if isinstance(value, GlobalName) else value) for name, value in _plain(state)]
    return replace(made, parts=(brief(kind), tuple(found)))


def _plain(state: Any) -> Iterator[tuple[str, Any]]:
    for name, value in state.items() if isinstance(state, dict) and len(state) <= ATTRIBUTES else ():
        if type(name) is str and isinstance(value, (TensorInfo, GlobalName, bool, int, str)):
            yield name, value


def _nested(data: Any, *_: Any) -> TensorInfo:
    if not isinstance(data, TensorInfo):
        raise FormatError("the file is damaged: a nested tensor is stored without its values.", rule="nested")
    return TensorInfo(data.dtype, (), opaque=NESTED)


def _sparse(layout: Any, data: Any) -> TensorInfo:
    """Return the header of a sparse tensor; its ``parts`` are the layout, and a tuple of indices, values and size.

    Raises FormatError if a part is missing or not valid.
    """
    if type(layout) is not str or type(data) is not tuple or not 3 <= len(data) <= 4:
        raise FormatError(
            "the file is damaged: a sparse tensor is stored without its indices, values or size.", rule="sparse"
        )
    coo = layout.endswith("coo")
    values, size = (data[1], data[2]) if coo else (data[2], data[3] if len(data) > 3 else ())
    if not isinstance(values, TensorInfo):
        raise FormatError("the values of a sparse tensor are not a tensor.", rule="sparse")
    check_sizes(size, "size")
    check_elements(size)
    return TensorInfo(values.dtype, size, opaque=SPARSE, parts=(layout, data))


def _from_numpy(data: Any, dtype: Any, *_: Any) -> object:
    if not isinstance(data, Array):
        return OpaqueResult("numpy.ndarray", (data,))
    return TensorInfo(dtype_of(dtype), data.shape, opaque=ARRAY, parts=(data,))


_OTHERS: dict[str, Callable[..., object]] = {
    "_rebuild_parameter": _itself,
    "_rebuild_parameter_with_state": _itself,
    "_rebuild_device_tensor_from_cpu_tensor": _itself,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapped,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_device_tensor_from_numpy": _from_numpy,
    "_rebuild_xla_tensor": _from_numpy,
}
