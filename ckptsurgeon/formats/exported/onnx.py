"""Reads the initialisers of an ONNX model: its weights, under the names that the exporter gave them.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and docs/ExternalData.md. The bytes of a tensor are in the model
itself (``raw_data``, or packed floats) or in another file of its folder. Operators are not executed. The messages are
read field by field through a small window, so a model of any size is opened in little memory.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from math import prod

from ...errors import FormatError, SourceError, UnsafeError
from ...storage.read._memory import MemoryFile
from ...storage.read.base import File, Source
from ...tensors.dtypes import DTYPES
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, escape, number_in
from ..base import limits
from ..base.header import FilePrint, Header, digest_outside, naming
from ..base.messages import Field, Messages
from ..base.protobuf import signed
from ..base.sharded_writer import shard_name
from ..base.untrusted import check_elements, check_sizes

__all__ = ["FORMAT"]

_HEAD = re.compile(
    rb"\x08[\x01-\x3f](?:\x12[\x01-\x7f][\x20-\x7e]|\x3a[\x80-\xff]{0,4}[\0-\x7f][\x0a\x12]|\x42[\x01-\x7f][\x0a\x10])"
)
"""Matches the first fields of a ``ModelProto``: version, then name of the producer, graph or operator sets."""
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
_OTHERS = {8: "string", 21: "uint4", 22: "int4", 23: "float4e2m1", 25: "uint2", 26: "int2"}
"""Types whose values are not read, by their number in ``TensorProto.DataType``."""
_FLOATS, _DOUBLES, _RAW, _EXTERNAL = 4, 10, 9, 13
"""The fields of a ``TensorProto`` that contain its values, or say in which file they are."""
_NUMBERS = {5: "int32_data", 7: "int64_data", 11: "uint64_data"}
"""The fields that contain values as varints."""
_FITTING = {
    _FLOATS: {"float32", "complex64"}, _DOUBLES: {"float64", "complex128"}, _RAW: {*_DTYPES.values()},
    7: {"int64"}, 11: {"uint32", "uint64"},
    5: {"int32", "int16", "int8", "uint16", "uint8", "bool", "float16", "bfloat16",
        *(name for name in _DTYPES.values() if name.startswith("float8"))},
}  # fmt: skip
"""{number of a field: dtypes of the tensors whose values this field may contain}."""
_LARGE = 1 << 10
"""From this size in bytes on, constants of nodes are counted in a note: smaller ones are shapes, axes and the like."""
_MADE_NAME = re.compile(r"(?:onnx::\w+_\d+|val_\d+|\d+)")
"""Matches names that torch's exporters make for weights that they have transposed or folded."""


@dataclass
class _Tensor:
    """A ``TensorProto`` as it is read; ``places`` maps the number of a field to the ranges of its bytes in the file."""

    name: str = ""
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


@dataclass
class _Found:
    """The content of a model: tensors, metadata, and counts for the notes on parts that were not read."""

    tensors: list[_Tensor] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    sparse: int = 0
    long: int = 0
    constants: int = 0
    has_graph: bool = False
    has_training: bool = False


class _Onnx:
    name = "onnx"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins like a ``ModelProto``."""
        return isinstance(source, File) and bool(_HEAD.match(head))

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the model; raises FormatError or UnsafeError if the model breaks a rule of the format.

        Tensors whose values are in other files must be in the folder of the model, or below it.
        """
        assert isinstance(source, File)
        with naming(source), ExitStack() as stack:
            found = _model(Messages(source, "ONNX model"))
            own = source.name if any(one.is_external for one in found.tensors) and not name else name
            files = _Files(source, own, stack)
            tree: dict[str, TensorInfo] = {}
            for one in found.tensors:
                if one.name in tree:
                    raise FormatError(f"it has two tensors called {escape(one.name)}.", rule="duplicate key")
                tree[one.name] = files.info(one)
            payload = sorted(
                (info.storage.offset, info.storage.offset + info.storage.nbytes)
                for info in tree.values()
                if info.storage is not None and info.storage.file == own
            )
            prints = [FilePrint.of(source, digest_outside(source, payload), own)]
            stack.pop_all()
        nothing = hashlib.sha256(b"").hexdigest()  # the other files have no headers
        prints += [FilePrint.of(file, nothing, key) for key, file in files.others.items()]
        return Header(
            format=self.name,
            tree=tree,
            files=tuple(prints),
            handles=files.handles(),
            metadata=found.metadata,
            notes=tuple(_notes(found, tree)),
        )


# The messages.


def _model(messages: Messages) -> _Found:
    """Return the content of a ``ModelProto``; raises FormatError if it has no graph."""
    found = _Found()
    size = messages.file.size
    texts = {2: "producer_name", 3: "producer_version", 4: "domain", 6: "doc_string"}
    for one in messages.fields(0, size):
        if one.number == 1:
            found.metadata["ir_version"] = str(one.value)
        elif one.end - one.begin > limits.ONNX_TEXT and one.number in (*texts, 8, 14):
            found.long += 1
        elif one.number in texts and one.end > one.begin:
            found.metadata[texts[one.number]] = messages.text(one, limits.ONNX_TEXT)
        elif one.number == 7:
            found.has_graph = True
            _graph(messages, one, found)
        elif one.number == 8:
            domain, version = _pair(messages, one)
            found.metadata[f"opset {domain or 'ai.onnx'}"] = version
        elif one.number == 14:
            key, value = _pair(messages, one)
            found.metadata[key] = value
        elif one.number == 20:
            found.has_training = True
        if len(found.metadata) > limits.EXTRAS:
            raise UnsafeError(f"it has more than {limits.EXTRAS:,} entries of metadata.", rule="onnx metadata")
    if not found.has_graph:
        raise FormatError("it has no graph, so it is not an ONNX model, or is truncated.", rule="onnx graph")
    return found


def _pair(messages: Messages, of: Field) -> tuple[str, str]:
    """Return fields 1 and 2 of the message ``of``, such as key and value, as texts; an integer is written in digits."""
    found = {1: "", 2: ""}
    for one in messages.fields(of.begin, of.end):
        if one.number in found:
            found[one.number] = str(signed(one.value)) if one.is_number else messages.text(one, limits.ONNX_TEXT)
    return found[1], found[2]


def _graph(messages: Messages, of: Field, found: _Found) -> None:
    for one in messages.fields(of.begin, of.end):
        if one.number == 1 and one.end - one.begin >= _LARGE:
            found.constants += _constants(messages, one)
        elif one.number == 5:
            found.tensors.append(_tensor(messages, one))
            if len(found.tensors) > limits.TENSORS:
                raise UnsafeError(f"it has more than {limits.TENSORS:,} tensors.", rule="tensors")
        elif one.number == 15:
            found.sparse += 1


def _constants(messages: Messages, node: Field, depth: int = 0) -> int:
    """Return the number of large tensors in the attributes of a node, directly or in subgraphs.

    Tensors in a subgraph are its initialisers, or are in the attributes of its nodes. ``depth`` is the number of
    subgraphs around ``node``.
    """
    total = 0
    attributes = [one for one in messages.fields(node.begin, node.end) if one.number == 5]
    for attribute in attributes:
        for one in list(messages.fields(attribute.begin, attribute.end)):
            if one.end - one.begin < _LARGE:
                continue
            if one.number in (5, 10):  # a tensor, or one of several
                total += 1
            elif one.number in (6, 11) and depth < limits.ONNX_DEPTH:  # a graph, or one of several
                parts = [part for part in messages.fields(one.begin, one.end) if part.end - part.begin >= _LARGE]
                total += sum(part.number == 5 for part in parts)
                total += sum(_constants(messages, part, depth + 1) for part in parts if part.number == 1)
    return total


def _tensor(messages: Messages, of: Field) -> _Tensor:
    tensor = _Tensor()
    for one in messages.fields(of.begin, of.end):
        if one.number == 1:
            tensor.shape += messages.numbers(one, limits.DIMENSIONS)
        elif one.number == 2:
            tensor.dtype = one.value
        elif one.number == 8:
            tensor.name = messages.text(one)
        elif one.number in _NUMBERS:
            tensor.numbers.extend(messages.numbers(one, limits.MESSAGE_NUMBERS))
            tensor.places[one.number] = []
        elif one.number in (_FLOATS, _DOUBLES, _RAW, 6):
            if one.end > one.begin:
                tensor.places.setdefault(one.number, []).append((one.begin, one.end))
        elif one.number == _EXTERNAL:
            key, value = _pair(messages, one)
            tensor.external[key] = value
        elif one.number == 14:
            tensor.is_external = one.value == 1
    if not tensor.name:
        raise FormatError("one of its initialisers has no name.", rule="onnx name")
    return tensor


# The values.


class _Numbers:
    """The values of tensors that the file stores as varints: they are decoded, and their bytes are kept in memory."""

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


class _Files:
    """The files that contain values of tensors: the model, and other files, which are opened when they are needed.

    ``own`` is the name of the model in ``Storage.file``.
    """

    def __init__(self, model: File, own: str, stack: ExitStack) -> None:
        self.model, self.own = model, own
        self.others: dict[str, File] = {}
        self._stack = stack
        self._numbers = _Numbers()

    def handles(self) -> Mapping[str, File]:
        """Return the open files, by the name that ``Storage.file`` has for each.

        The values that were decoded from varints are one of these files, a file in memory.
        """
        found = {self.own: self.model, **self.others}
        if self._numbers.data:
            found[self._in_memory] = MemoryFile(f"{self.model.uri} (numbers)", [self._numbers])
        return found

    @property
    def _in_memory(self) -> str:
        return f"{self.own} (numbers)"

    def info(self, one: _Tensor) -> TensorInfo:
        """Return the header of a tensor; raises FormatError if its values do not fit its shape."""
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

    def _place(self, one: _Tensor, dtype: str, nbytes: int) -> tuple[str, int]:
        """Return the file and the offset of a tensor's bytes."""
        kind, ranges = next(iter(one.places.items()), (_RAW, []))
        if dtype not in _FITTING.get(kind, ()):
            raise FormatError(
                f"the tensor {escape(one.name)} is {dtype}, but has values of another type.", rule="onnx values"
            )
        if kind in _NUMBERS:
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

    def _kept(self, one: _Tensor, dtype: str, nbytes: int) -> int:
        """Put the decoded values of a tensor into memory, and return their offset there.

        The file stores these values as varints.
        """
        size = DTYPES[dtype].bits // 8
        if size * len(one.numbers) != nbytes:
            raise FormatError(
                f"the tensor {escape(one.name)} is {dtype} {list(one.shape)}, but has {len(one.numbers)} values.",
                rule="tensor size",
            )
        most = (1 << 8 * size) - 1
        return self._numbers.append(b"".join((value & most).to_bytes(size, "little") for value in one.numbers))

    def _external(self, one: _Tensor, nbytes: int) -> Storage:
        location = shard_name(one.external.get("location", ""))
        if not location:
            raise FormatError(
                f"the tensor {escape(one.name)} is in another file, whose name is missing.", rule="onnx external"
            )
        offset, length = (number_in(one.external.get(key, said)) for key, said in (("offset", "0"), ("length", "")))
        if "length" in one.external and length != nbytes:
            raise FormatError(
                f"the tensor {escape(one.name)} is {nbytes} bytes, but the file says that it has "
                f"{escape(one.external['length'], 20)} in {escape(location)}.",
                rule="tensor size",
            )
        file = self._file(location, one.name)
        if offset is None or offset + nbytes > file.size:
            raise FormatError(
                f"the tensor {escape(one.name)} is {nbytes} bytes at {escape(one.external.get('offset', '0'), 20)} of "
                f"{escape(location)}, which has {file.size} bytes.",
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
            if len(self.others) >= limits.SHARDS:
                raise UnsafeError(f"its tensors are in more than {limits.SHARDS} files.", rule="shards")
            try:
                self.others[location] = self._stack.enter_context(closing(self.model.folder().file(location)))
            except SourceError as error:
                raise FormatError(
                    f"the tensor {escape(name)} is in {escape(location)}, which cannot be read: {error.message}",
                    hint="Copy the files of the model together.",
                    rule="missing shard",
                ) from error
        return self.others[location]


def _notes(found: _Found, tree: Mapping[str, TensorInfo]) -> Iterator[str]:
    yield "read the weights of an ONNX model (its initialisers), not its operators"
    if found.constants:
        yield (
            f"{count(found.constants, 'tensor')} of 1 kB or more are constants of nodes or of subgraphs, not "
            "initialisers: they were not read"
        )
    if found.sparse:
        yield f"not read: {count(found.sparse, 'sparse tensor')}"
    if found.has_training:
        yield "the graphs for training in this ONNX model were not read"
    if found.long:
        yield f"left out: {count(found.long, 'entry', 'entries')} of metadata longer than {limits.ONNX_TEXT >> 20} MB"
    made = [key for key, info in tree.items() if len(info.shape) > 1 and _MADE_NAME.fullmatch(key)]
    if made:
        have = "1 weight has a name" if len(made) == 1 else f"{len(made)} weights have names"
        yield (
            f"{have} that the exporter made, such as {escape(made[0])}: weights of linear layers are transposed "
            "there, and the gates of LSTM and GRU are in another order; use the checkpoint that was exported, if you "
            "have it"
        )


FORMAT = _Onnx()
