"""Reads the bytes of a tensor, checks their checksum, and makes the tensor that ``torch.load`` would return."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..errors import FormatError
from ..formats.base.header import naming
from ..formats.pickle.numpy import Array
from ..formats.pickle.values import ARRAY, META, QUANTISED, SPARSE, GlobalName
from ..storage.crc32c import crc32c
from ..storage.read.base import File
from ..tensors.dtypes import BLOCKS, DTYPES, reach
from ..tensors.info import (
    Averaged,
    Cast,
    Concatenated,
    Decoded,
    Encoded,
    ExpScaled,
    Filled,
    Given,
    Noisy,
    Permuted,
    Reshaped,
    Scaled,
    Shifted,
    Sliced,
    Storage,
    Summed,
    Taken,
    TensorInfo,
)
from ..tensors.ops.means import exp_of
from ..tensors.ops.regions import Array as Values
from ..tensors.ops.regions import Box
from ..util.text import escape
from .torch_tensors import OpaqueTensor

__all__ = ["OpenFiles", "checked_bytes", "materialise"]

# Reads the bytes of a tensor, and checks the checksum of its storage.

_PIECE = 1 << 20


class OpenFiles(Protocol):
    """The part of the interface of ``Checkpoint`` that is needed to read a tensor.

    ``path`` is the path of the checkpoint for messages; ``checked`` has the storages whose checksum was verified.
    """

    path: str
    checked: set[Storage]

    def file(self, info: TensorInfo) -> File:
        """Return the open file that contains a stored tensor."""
        ...


def checked_bytes(checkpoint: OpenFiles, info: TensorInfo) -> bytearray:
    """Return the bytes of a tensor, from its first to its last element in the storage.

    When a storage is read for the first time, all its bytes are checked; raises FormatError if the checksum is wrong.
    """
    file, storage = checkpoint.file(info), info.storage
    assert storage is not None
    length = reach(info.shape, info.stride) * info.itemsize if info.stride else info.nbytes
    data = bytearray(length)
    file.readinto(storage.offset + info.offset, memoryview(data))
    if storage.has_checksum and storage not in checkpoint.checked:
        for expected, sum_of in ((storage.crc32, zlib.crc32), (storage.crc32c, crc32c)):
            if expected is None:
                continue
            whole = sum_of(data, 0) if length == storage.nbytes else _sum(file, storage, sum_of)
            if whole != expected:
                raise FormatError(
                    f"{escape(checkpoint.path)}: the storage {escape(storage.name)} does not match its checksum.",
                    rule="crc",
                )
        checkpoint.checked.add(storage)
    return data


def _sum(file: File, storage: Storage, sum_of: Callable[[Any, int], int]) -> int:
    """Return the checksum of a storage, which is read piece by piece; ``sum_of`` computes CRC-32 or CRC-32C."""
    buffer = memoryview(bytearray(min(_PIECE, storage.nbytes)))
    at, crc = 0, 0
    while at < storage.nbytes:
        piece = buffer[: storage.nbytes - at]
        file.readinto(storage.offset + at, piece)
        crc = sum_of(piece, crc)
        at += len(piece)
    return crc


def materialise(checkpoint: OpenFiles, key: str, info: TensorInfo) -> torch.Tensor:
    """Read the values of the tensor ``key``, and return it as a ``torch.Tensor`` on the CPU.

    Raises FormatError if the values cannot be read or fail their checksum.
    """
    try:
        with torch.device("cpu"):  # the caller may have set another default device
            return _materialised(checkpoint, key, info)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # torch raises these if the stored parts do not fit together
        why = f"{error}".partition("\n")[0]
        raise FormatError(
            f"the tensor {escape(key)} of {escape(checkpoint.path)} cannot be rebuilt: {escape(why)}.", rule="parts"
        ) from error


def _materialised(checkpoint: OpenFiles, key: str, info: TensorInfo) -> torch.Tensor:
    if info.made is not None:
        return _made(checkpoint, key, info)
    if info.parts and isinstance(info.parts[0], OpaqueTensor):
        return info.parts[0].tensor.detach().clone()
    rebuild = _OPAQUE.get(info.opaque)
    if rebuild is not None:
        return rebuild(checkpoint, info)
    if DTYPES[info.dtype].block is not None:
        info = replace(info, dtype="uint8")
    if info.opaque or not hasattr(torch, info.dtype):
        why = info.opaque or f"torch has no dtype {info.dtype}"
        raise FormatError(
            f"the tensor {escape(key)} of {escape(checkpoint.path)} cannot be read: {why}.", rule="opaque"
        )
    tensor = _strided(checkpoint, info, _dtype(info))
    if info.conj:
        tensor = tensor.conj()
    return torch._neg_view(tensor) if info.neg else tensor


def _made(checkpoint: OpenFiles, key: str, info: TensorInfo) -> torch.Tensor:
    """Return a tensor that is computed from stored tensors; ``info.made`` says how, such as by a concatenation."""
    made = info.made
    if isinstance(made, (Decoded, Encoded)):
        return _coded(checkpoint, key, info)
    if isinstance(made, Given):
        return torch.tensor(made.values, dtype=_dtype(info)).reshape(info.shape)
    if isinstance(made, Filled):
        return torch.full(info.shape, made.value, dtype=_dtype(info))
    if isinstance(made, Noisy):
        return _with_noise(_materialised(checkpoint, key, made.of), info, made)
    if isinstance(made, Concatenated):
        return torch.cat([_materialised(checkpoint, key, one) for one in made.of], made.dim)
    if isinstance(made, Summed):
        first, *others = (_materialised(checkpoint, key, one) for one in made.of)
        wide = torch.complex128 if first.is_complex() else torch.float64
        if made.weights:
            products = (one.to(wide) * by for one, by in zip((first, *others), made.weights, strict=True))
            return functools.reduce(torch.add, products).to(first.dtype)
        number = len(made.of) if made.is_mean else 1
        return (functools.reduce(torch.add, others, first.to(wide)) / number).to(first.dtype)
    if isinstance(made, ExpScaled):
        of, exponent = (_materialised(checkpoint, key, one) for one in made.of)
        return (of.double() * exp_of(exponent.double().numpy(), "float64")).to(of.dtype)
    if isinstance(made, Averaged):
        parts = (
            _materialised(checkpoint, key, made.of).to(torch.float64).tensor_split(made.of.shape[made.dim], made.dim)
        )
        return (functools.reduce(torch.add, parts) / len(parts)).to(_dtype(info))
    assert isinstance(made, (Cast, Permuted, Reshaped, Scaled, Shifted, Sliced, Taken))
    of = _materialised(checkpoint, key, made.of)
    if isinstance(made, Reshaped):
        return of.reshape(info.shape)
    if isinstance(made, Permuted):
        return of.permute(made.dims)
    if isinstance(made, Taken):
        return torch.cat([of.narrow(made.dim, begin, end - begin) for begin, end in made.runs], made.dim)
    if isinstance(made, Sliced):
        return of[tuple(slice(at, at + size) for at, size in zip(made.begin, info.shape, strict=True))]
    if isinstance(made, Cast):
        return of.to(_dtype(info))
    if isinstance(made, Shifted):
        return (of.double() + made.by).to(_dtype(info))
    return (of.to(torch.complex128 if of.is_complex() else torch.float64) * made.factor).to(of.dtype)


def _with_noise(of: torch.Tensor, info: TensorInfo, made: Noisy) -> torch.Tensor:
    """Return a copy of the tensor ``of`` to which noise is added: the same values as in an output file.

    ``made`` describes the noise: its size and seed, and the elements that get noise.
    """
    from ..tensors.decoders._decoder import whole
    from ..tensors.ops.casts import raw_dtype
    from ..tensors.ops.noise import with_noise

    values = of.contiguous().view(-1).view(torch.uint8).numpy().view(raw_dtype(info.dtype)).reshape(info.shape)
    rounded = with_noise(values, info.dtype, info.shape, whole(info), made.dim, made.runs, made.by, made.seed)
    return torch.from_numpy(rounded.reshape(-1).view("u1")).view(of.dtype).view(info.shape)


def _coded(checkpoint: OpenFiles, key: str, info: TensorInfo) -> torch.Tensor:
    """Return the decoded weight of a quantised tensor, or, if ``info.made`` is Encoded, its codes or scales."""
    from ..tensors.decoders._decoder import decode, whole
    from ..tensors.encoders._encode import encode
    from ..tensors.ops.casts import raw_dtype

    inputs: dict[int, Values] = {}

    def read(one: TensorInfo, box: Box) -> Values:
        if id(one) not in inputs:
            # torch may lack the dtype of codes
            raw = replace(one, dtype="uint8") if one.itemsize == 1 and one.made is None else one
            stored = _materialised(checkpoint, key, raw).contiguous().reshape(-1).view(torch.uint8)
            inputs[id(one)] = stored.numpy().view(raw_dtype(one.dtype)).reshape(one.shape)
        part: Values = inputs[id(one)][tuple(slice(*span) for span in box)]
        return part

    if isinstance(info.made, Decoded):
        with naming(checkpoint.file(info.made.of[0])):
            return torch.from_numpy(decode(read, info, whole(info)))
    made = torch.from_numpy(encode(read, info, whole(info)).reshape(-1).view("u1"))
    return made.view(info.shape) if info.dtype in BLOCKS else made.view(_dtype(info)).view(info.shape)


def _dtype(info: TensorInfo) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, info.dtype)
    return dtype


def _strided(checkpoint: OpenFiles, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that contains a copy of the stored bytes, and has the strides in ``info``."""
    if info.numel == 0:
        return torch.empty(info.shape, dtype=dtype)
    data = checked_bytes(checkpoint, info)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if info.storage is not None and info.storage.big_endian and info.itemsize > 1:
        item = info.itemsize // 2 if info.dtype.startswith("complex") else info.itemsize
        flat = flat.view(-1, item).flip(1).reshape(-1)
    flat = flat.view(dtype)
    return flat.view(info.shape) if info.stride is None else flat.as_strided(info.shape, info.stride)


def _quantised(checkpoint: OpenFiles, info: TensorInfo) -> torch.Tensor:
    params: Any = info.parts[0] if info.parts else ()
    raw = _codes(checkpoint, info)
    scheme = str(params[0]) if isinstance(params, tuple) and params and isinstance(params[0], (GlobalName, str)) else ""
    if scheme == "torch.per_tensor_affine" and len(params) == 3:
        made = torch._empty_affine_quantized(
            info.shape,
            scale=float(params[1]),
            zero_point=int(params[2]),
            dtype=_dtype(info),
        )
    elif scheme.startswith("torch.per_channel_affine") and len(params) == 4:
        scales, zeros = (_part(checkpoint, part) for part in params[1:3])
        made = torch._empty_per_channel_affine_quantized(
            info.shape,
            scales=scales,
            zero_points=zeros,
            axis=int(params[3]),
            dtype=_dtype(info),
        )
    else:
        raise FormatError(
            f"a quantised tensor cannot be read: its quantisation scheme {scheme!r:.60} is unknown.", rule="quantiser"
        )
    made.set_(raw.untyped_storage(), 0, info.shape, made.stride() if info.stride is None else raw.stride())
    return made


def _codes(checkpoint: OpenFiles, info: TensorInfo) -> torch.Tensor:
    """Return the codes of a quantised torch tensor as integers, or as flat bytes if a code is smaller than a byte."""
    if info.itemsize * 8 > DTYPES[info.dtype].bits:
        return _strided(checkpoint, replace(info, dtype="uint8", shape=(info.nbytes,), stride=None), torch.uint8)
    return _strided(checkpoint, info, {"qint32": torch.int32, "qint8": torch.int8}.get(info.dtype, torch.uint8))


def _part(checkpoint: OpenFiles, part: Any) -> torch.Tensor:
    if isinstance(part, TensorInfo):
        return materialise(checkpoint, "inside another tensor", part)
    raise FormatError(
        "a sparse or quantised tensor lacks one of its parts, such as its indices or scales.", rule="opaque"
    )


def _sparse(checkpoint: OpenFiles, info: TensorInfo) -> torch.Tensor:
    layout, data = info.parts
    assert isinstance(data, tuple)
    if str(layout).endswith("coo"):
        indices, values = _part(checkpoint, data[0]), _part(checkpoint, data[1])
        coalesced = data[3] if len(data) > 3 and isinstance(data[3], bool) else None
        return torch.sparse_coo_tensor(indices, values, info.shape, check_invariants=True, is_coalesced=coalesced)
    compressed, plain, values = (_part(checkpoint, part) for part in data[:3])
    return torch.sparse_compressed_tensor(
        compressed,
        plain,
        values,
        info.shape,
        layout=getattr(torch, str(layout).rpartition(".")[2]),
        check_invariants=True,
    )


def _array(checkpoint: OpenFiles, info: TensorInfo) -> torch.Tensor:
    array = info.parts[0]
    if isinstance(array, Array) and array.shape != info.shape:
        raise FormatError(
            "the shape of a tensor differs from the shape of the numpy array that stores its values.", rule="numpy"
        )
    if not isinstance(array, Array) or not array.dtype:
        raise FormatError("the values of a tensor are an array of Python objects, not of numbers.", rule="numpy")
    order = array.shape[::-1] if array.fortran else array.shape
    flat = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
    dtype: torch.dtype = getattr(torch, array.dtype)
    if array.big_endian:
        flat = flat.view(-1, dtype.itemsize).flip(1).reshape(-1)
    tensor = flat.view(dtype).view(order)
    return (tensor.permute(*reversed(range(len(order)))) if array.fortran else tensor).to(_dtype(info))


def _meta(checkpoint: OpenFiles, info: TensorInfo) -> torch.Tensor:
    return torch.empty(info.shape, dtype=_dtype(info), device="meta")


_OPAQUE: dict[str, Callable[[OpenFiles, TensorInfo], torch.Tensor]] = {
    QUANTISED: _quantised,
    SPARSE: _sparse,
    ARRAY: _array,
    META: _meta,
}
