"""Finds the values of the tensors of an ONNX model, in its file or in other files of its folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from math import prod

from ...errors import FormatError, SourceError, UnsafeError
from ...storage.read._memory import MemoryFile
from ...storage.read.base import File
from ...storage.read.uri import leads_out
from ...tensors.dtypes import DTYPES
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape, number_in
from ..base import limits
from ..base.format_table import shard_name
from ..base.untrusted import check_elements, check_sizes
from ._onnx_messages import DOUBLES, FLOATS, NUMBERS, RAW, OnnxTensor

__all__ = ["OnnxFiles"]

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
_OTHERS = {8: "string", 21: "uint4", 22: "int4", 23: "float4e2m1", 25: "uint2", 26: "int2"}
"""Types whose values are not read, by their number in ``TensorProto.DataType``."""
_FITTING = {
    FLOATS: {"float32", "complex64"}, DOUBLES: {"float64", "complex128"}, RAW: {*_DTYPES.values()},
    7: {"int64"}, 11: {"uint32", "uint64"},
    5: {"int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16",
        *(name for name in _DTYPES.values() if name.startswith("float8"))},
}  # fmt: skip
"""{number of a field: dtypes of the tensors whose values this field may contain}."""


class _Numbers:
    """The values of tensors that the file stores as varints; they are decoded and kept in memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.nbytes = 0

    def append(self, data: bytes) -> int:
        """Add bytes at the end, and return their offset."""
        self.data += data
        self.nbytes = len(self.data)
        return self.nbytes - len(data)

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes from ``offset`` on."""
        view[:] = self.data[offset : offset + len(view)]


class OnnxFiles:
    """The files that contain values of tensors: the model itself, and other files, which are opened when needed.

    ``own`` is the name of the model in ``Storage.file``.
    """

    def __init__(self, model: File, own: str, stack: ExitStack) -> None:
        self.model, self.own = model, own
        self.others: dict[str, File] = {}
        self._stack = stack
        self._numbers = _Numbers()

    def handles(self) -> Mapping[str, File]:
        """Return {name in ``Storage.file``: open file}.

        One of them is a file in memory: it has the values that were decoded from varints.
        """
        found = {self.own: self.model, **self.others}
        if self._numbers.data:
            found[self._in_memory] = MemoryFile(f"{self.model.uri} (numbers)", [self._numbers])
        return found

    @property
    def _in_memory(self) -> str:
        return f"{self.own} (numbers)"

    def info(self, one: OnnxTensor) -> TensorInfo:
        """Return the header of a tensor; raises FormatError if its type is unknown or its values do not fit it.

        Raises UnsafeError if its values are in a file outside the folder of the model, or in too many files.
        """
        shape = tuple(one.shape)
        check_sizes(shape, "shape")
        check_elements(shape)
        if one.dtype in _OTHERS:
            return TensorInfo("uint8", shape, opaque=f"its type {_OTHERS[one.dtype]} is not read from ONNX")
        dtype = _DTYPES.get(one.dtype)
        if dtype is None:
            raise FormatError(f"the tensor {escape(one.name)} has the unknown type {one.dtype}.", rule="onnx type")
        nbytes = prod(shape) * DTYPES[dtype].bits // 8
        if len(one.places) + one.is_external > 1:
            raise FormatError(f"the tensor {escape(one.name)} stores its values twice.", rule="onnx values")
        if one.is_external:
            return TensorInfo(dtype, shape, self._external(one, nbytes))
        where = self._place(one, dtype, nbytes)
        return TensorInfo(dtype, shape, Storage(where[0], where[1], nbytes, None, one.name))

    def _place(self, one: OnnxTensor, dtype: str, nbytes: int) -> tuple[str, int]:
        """Return the file and the offset of a tensor's bytes; raises FormatError if they do not fit the tensor."""
        kind, ranges = next(iter(one.places.items()), (RAW, []))
        if dtype not in _FITTING.get(kind, ()):
            raise FormatError(
                f"the tensor {escape(one.name)} is {dtype}, but has values of another type.", rule="onnx values"
            )
        if kind in NUMBERS:
            return self._in_memory, self._kept(one, dtype, nbytes)
        ranges = ranges or [(0, 0)]
        if len(ranges) > 1 or ranges[0][1] - ranges[0][0] != nbytes:
            have = sum(end - begin for begin, end in ranges)
            raise FormatError(
                f"the tensor {escape(one.name)} is {dtype} {list(one.shape)}, which is {nbytes} bytes, but has "
                f"{have} bytes{f' in {len(ranges)} pieces' if len(ranges) > 1 else ''}.",
                rule="tensor size",
            )
        return self.own, ranges[0][0]

    def _kept(self, one: OnnxTensor, dtype: str, nbytes: int) -> int:
        """Put the decoded values of a tensor into memory, and return their offset there.

        The file stores these values as varints. Raises FormatError if the number of values is wrong.
        """
        size = DTYPES[dtype].bits // 8
        if size * len(one.numbers) != nbytes:
            raise FormatError(
                f"the tensor {escape(one.name)} is {dtype} {list(one.shape)}, but has {len(one.numbers)} values.",
                rule="tensor size",
            )
        most = (1 << 8 * size) - 1
        return self._numbers.append(b"".join((value & most).to_bytes(size, "little") for value in one.numbers))

    def _external(self, one: OnnxTensor, nbytes: int) -> Storage:
        location = shard_name(one.external.get("location", ""))
        if not location:
            raise FormatError(
                f"the tensor {escape(one.name)} is in another file, whose name is missing.", rule="onnx external"
            )
        offset, length = (number_in(one.external.get(key, said)) for key, said in (("offset", "0"), ("length", "")))
        if "length" in one.external and length != nbytes:
            raise FormatError(
                f"the tensor {escape(one.name)} is {nbytes} bytes, but the model says that it has "
                f"{escape(one.external['length'], 20)} bytes in {escape(location)}.",
                rule="tensor size",
            )
        file = self._file(location, one.name)
        if offset is None or offset + nbytes > file.size:
            raise FormatError(
                f"the tensor {escape(one.name)} needs {nbytes} bytes from byte "
                f"{escape(one.external.get('offset', '0'), 20)} of {escape(location)} on, but this file has "
                f"{file.size} bytes.",
                rule="cut short",
            )
        return Storage(location, offset, nbytes, None, one.name)

    def _file(self, location: str, name: str) -> File:
        if location not in self.others:
            if location.startswith("/") or "\\" in location or ".." in location.split("/") or location == self.own:
                raise UnsafeError(
                    f"the tensor {escape(name)} is in {escape(location)}, which is not another file in the same "
                    "folder.",
                    rule="outside",
                )
            if self._leads_out(location):
                raise UnsafeError(
                    f"the tensor {escape(name)} is in {escape(location)}, a link to a file outside the folder.",
                    hint="Copy the folder with cp -rL, if this file is meant to be part of it.",
                    rule="outside",
                )
            if len(self.others) >= limits.SHARDS:
                raise UnsafeError(f"the tensors are in more than {limits.SHARDS} files.", rule="shards")
            try:
                self.others[location] = self._stack.enter_context(closing(self.model.folder().file(location)))
            except SourceError as error:
                raise FormatError(
                    f"the tensor {escape(name)} is in {escape(location)}, which cannot be read: {error.message}",
                    hint="Copy all files of the model into one folder.",
                    rule="missing shard",
                ) from error
        return self.others[location]

    def _leads_out(self, location: str) -> bool:
        """Return whether the file at ``location`` is a link out of the model's folder, or is inside such a link."""
        parts, folder = location.split("/"), self.model.folder().uri
        return any(leads_out(os.path.join(folder, *parts[: end + 1]), folder) for end in range(len(parts)))
