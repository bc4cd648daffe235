"""Describes tensors in torch's pickles that have no plain values in a storage: sparse and nested tensors, subclasses.

Follows ``torch/_utils.py`` and ``torch/_tensor.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ...errors import FormatError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ..base.untrusted import check_elements, check_sizes
from ..pickle.numpy import Array
from ..pickle.values import ARRAY, META, NESTED, SPARSE, GlobalName, OpaqueResult, brief

__all__ = ["OTHERS", "dtype_of", "unknown", "with_attributes", "wrapped"]

_DTYPE_NAMES = {
    "half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32",
    "short": "int16", "cfloat": "complex64", "cdouble": "complex128", "chalf": "complex32",
}  # fmt: skip

ATTRIBUTES = 24
"""The attributes of a tensor subclass are kept if there are at most this many; torchao's classes have ten.

There is a limit because many tensors of a file may refer to the same large dict of attributes.
"""


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


def _itself(data: Any, *_: Any) -> object:
    return data


def _meta(dtype: Any, size: Any, *_: Any) -> TensorInfo:
    return unknown(META, dtype_of(dtype), size)


def wrapped(kind: Any, dtype: Any, size: Any, *_: Any) -> TensorInfo:
    """Return the header of a tensor of the class ``kind``, a subclass of torch.Tensor."""
    return unknown(f"it is of the class {brief(kind)}", dtype_of(dtype), size)


def with_attributes(made: Any, kind: Any, state: Any) -> TensorInfo:
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


_LAYOUTS = {1: "torch.sparse_coo", 2: "torch.sparse_csr"}
"""{number of a layout in c10/core/Layout.h: its name}."""


def _sparse(layout: Any, data: Any = None, *more: Any) -> TensorInfo:
    """Return the header of a sparse tensor; its ``parts`` are the layout, and a tuple of indices, values and size.

    TorchScript stores the number of the layout, the size, requires_grad, the indices, the values and the hooks
    (pushLiteralSparseTensor in torch/csrc/jit/serialization/pickler.cpp). Raises FormatError if a part is missing or
    not valid.
    """
    if type(layout) is int and layout in _LAYOUTS and len(more) > 2:
        layout, data = _LAYOUTS[layout], (*more[1:-1], data)
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


OTHERS: dict[str, Callable[..., object]] = {
    "_rebuild_parameter": _itself,
    "_rebuild_parameter_with_state": _itself,
    "_rebuild_device_tensor_from_cpu_tensor": _itself,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": wrapped,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_device_tensor_from_numpy": _from_numpy,
    "_rebuild_xla_tensor": _from_numpy,
}
"""{name of a function in ``torch._utils``: ckptsurgeon's function in its place}."""
