"""Makes TensorInfo of torch tensors in memory, without copying their bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import SourceError
from ..formats.pickle.values import NESTED, QUANTISED, SPARSE
from ..tensors.dtypes import DTYPES, reach
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["ArrayBytes", "OpaqueTensor", "StorageAt", "TensorBytes", "is_tensor", "tensor_info"]

# The bytes of torch tensors and numpy arrays in memory, which are copied only when they are read.


class TensorBytes:
    """A run of bytes in a torch storage on any device; only bytes that are read are copied from a GPU.

    A reference to the storage is kept, not to the tensor, since the tensor may get another storage later.
    """

    __slots__ = ("_begin", "_flat", "_storage", "nbytes")

    def __init__(self, storage: torch.UntypedStorage, begin: int, nbytes: int) -> None:
        self._storage = storage
        self._begin = begin
        self._flat: Any = None
        self.nbytes = nbytes

    def readinto(self, offset: int, view: memoryview) -> None:
        """Copy bytes from ``offset`` on until ``view`` is full; raises SourceError if the storage became smaller."""
        begin = self._begin + offset
        if self._storage.nbytes() < begin + len(view):
            raise SourceError(
                "a tensor in memory was freed or became smaller after it was opened.",
                hint="Keep these tensors unchanged until the function returns.",
            )
        if self._flat is None or self._flat.numel() < begin + len(view):
            import torch

            flat = torch.empty(0, dtype=torch.uint8, device=self._storage.device)
            self._flat = flat.set_(self._storage)
        view[:] = self._flat[begin : begin + len(view)].cpu().numpy().data


class ArrayBytes:
    """The bytes of a numpy array in memory; ``readinto`` copies some of them."""

    __slots__ = ("_flat", "nbytes")

    def __init__(self, flat: np.ndarray[Any, Any]) -> None:
        self._flat = flat
        self.nbytes = int(flat.nbytes)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Copy bytes from ``offset`` on until ``view`` is full."""
        view[:] = self._flat[offset : offset + len(view)].data


StorageAt: TypeAlias = Callable[..., Storage]
"""A function (place, piece, big_endian=…) that returns the Storage of a run of bytes in memory.

``place`` is (device, address, number of bytes, whether big-endian). ``piece`` reads the bytes.
"""

ON_META = "it is on the meta device, without values"
LAZY = "its shape is only known after a forward pass"


class OpaqueTensor:
    """Wraps a tensor whose values are not plain bytes: ``==`` compares the wrappers, while tensors compare elements."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def is_tensor(value: object) -> bool:
    """Return whether a value is a ``torch.Tensor``, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_info(tensor: torch.Tensor, storage_at: StorageAt) -> TensorInfo:
    """Return the TensorInfo of a tensor, without copying its values.

    ``storage_at`` is a function that returns the Storage of the tensor's bytes. If the values are not plain bytes, the
    result's ``opaque`` is the reason.
    """
    try:
        why = _why_opaque(tensor)
        if why == QUANTISED and DTYPES[_dtype(tensor)].bits >= 8:
            return _quantised(tensor, storage_at)
        return _opaque(tensor, why) if why else _strided(tensor, storage_at)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:  # wrapper tensors without a storage
        return _opaque(tensor, f"its values cannot be read: {escape(str(error).partition(chr(10))[0], 100)}")


def _strided(tensor: torch.Tensor, storage_at: StorageAt) -> TensorInfo:
    dtype, shape, stride = _dtype(tensor), tuple(tensor.shape), tensor.stride()
    contiguous = tensor.is_contiguous()
    nbytes = (tensor.numel() if contiguous else reach(shape, stride)) * tensor.element_size()
    piece, place = None, (str(tensor.device), tensor.data_ptr(), nbytes, False)
    if nbytes:
        begin = int(tensor.storage_offset()) * tensor.element_size()
        piece = TensorBytes(tensor.untyped_storage(), begin, nbytes)
    return TensorInfo(
        dtype, shape, storage_at(place, piece, big_endian=sys.byteorder == "big"), 0,
        None if contiguous else tuple(stride), tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def _quantised(tensor: torch.Tensor, storage_at: StorageAt) -> TensorInfo:
    """Return the TensorInfo of a tensor that torch quantised; its scales and zero points are stored as in a pickle."""
    import torch

    scheme, numbers = str(tensor.qscheme()), tuple[object, ...]()
    if tensor.qscheme() == torch.per_tensor_affine:
        numbers = tensor.q_scale(), tensor.q_zero_point()
    else:
        channels = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        numbers = (*(tensor_info(one, storage_at) for one in channels), tensor.q_per_channel_axis())
    return replace(_strided(tensor, storage_at), opaque=QUANTISED, parts=((scheme, *numbers),))


def _why_opaque(tensor: torch.Tensor) -> str:
    """Return the reason why the values of a tensor are not plain bytes in its storage, '' if they are."""
    import torch

    kind = type(tensor)
    if torch.nn.parameter.is_lazy(tensor):
        return LAZY
    if tensor.is_nested:
        return NESTED
    if kind.__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
        return f"its class is {kind.__module__}.{kind.__qualname__}, which ckpt cannot read"
    if tensor.layout != torch.strided:
        return SPARSE if str(tensor.layout).startswith("torch.sparse") else f"its layout is {tensor.layout}"
    if tensor.is_quantized:
        return QUANTISED
    if tensor.is_meta:
        return ON_META
    return "" if _dtype(tensor) in DTYPES else f"its type {tensor.dtype} is unknown"


def _opaque(tensor: torch.Tensor, why: str) -> TensorInfo:
    """Return the TensorInfo of a tensor whose values are not plain bytes, with the reason (``why``) and the tensor."""
    dtype = _dtype(tensor)
    return TensorInfo(
        dtype if dtype in DTYPES else "float32", _shape(tensor), opaque=why, parts=(OpaqueTensor(tensor),)
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor; () for a nested tensor of several shapes, and for a lazy tensor without a shape."""
    try:
        return tuple(int(size) for size in tensor.shape)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # the sizes of nested tensors are symbols
        return ()
