"""Reads pickles of numpy's arrays (``.pkl``): a dict of arrays, also in further dicts and lists. Nothing is unpickled.

Models of Caffe2, detectron2 and JAX are published as such files. The files of PaddlePaddle are of this kind, too (see
``paddle.py``). The values are read from their offsets in the file. Pickles of protocols 0 to 2 store values as text,
which is decoded when they are read.
"""

from __future__ import annotations

import codecs
import os
import re
from threading import Lock
from typing import Any

from ...errors import FormatError
from ...storage.read._memory import MemoryFile, MemorySegment
from ...storage.read.base import File, Source
from ...tensors.dtypes import contiguous_stride
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, escape
from ..base.flatten import flattened, holds_tensors
from ..base.header import FilePrint, Header, naming
from ..pickle.numpy import Array
from ..pickle.skeleton import load_placed
from ..pickle.state import FIXED, LENGTHS, LINES
from ..pickle.values import GlobalName, OpaqueResult, PlacedBytes
from ..safetensors import FORMAT as SAFETENSORS
from ..torch_legacy import FORMAT as TORCH_LEGACY
from ..unsupported.text import UnreadableFile, argument, not_a_checkpoint
from ._paddle import NOTE as PADDLE_NOTE
from ._paddle import is_of_paddle, named_array, with_slices_joined

__all__ = ["FORMAT"]

_OLD = re.compile(rb"\([dlt](?:p\d+\n)?|c(?:numpy[\w.]*|collections|copy_reg)\n\w+\n|[\]}]q\0")
"""Matches the beginning of a pickle of protocol 0 or 1: of a dict, a list, a tuple or an array."""
_PROTOCOLS = (2, 3, 4, 5)
_INSTRUCTIONS = frozenset((*FIXED, *LENGTHS, *LINES))
_JOBLIB = b"joblib.numpy_pickle"
_PARTS = ("state_dict", "model_state_dict", "model", "module", "net", "params", "blobs", "weights")
"""The keys under which programs save a model next to other entries; only the dicts below these keys are flattened."""
_CHUNK = 8 << 20
_OF_PADDLE = (".pdparams", ".pdopt")
_TUPLES = 8
"""The most levels of tuples in which arrays are looked for."""


class _PickledArrays:
    name = "numpy pickle"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins like a pickle, but not like a file of torch or a safetensors file."""
        if not isinstance(source, File) or any(one.sniff(source, head) for one in (TORCH_LEGACY, SAFETENSORS)):
            return False
        return _begins_as_pickle(head) or bool(_OLD.match(head))

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of the file, without reading long strings; raises FormatError if it has no arrays."""
        assert isinstance(source, File)
        with naming(source):
            _refuse_joblib(source)
            found = load_placed(source)
            arrays = _Arrays(source, name)
            arrays.paddle = is_of_paddle(found.value)
            tree = arrays.converted(found.value)
            if not arrays.made:
                raise _no_arrays(source)
            if isinstance(tree, dict) and arrays.paddle:
                tree = with_slices_joined(tree)
            notes = [*arrays.notes(), *_rest(source, found.end)]
            flat = _joined(tree, os.path.splitext(source.name)[0] or "array")
        return Header(
            "paddle" if arrays.paddle else self.name,
            flat,
            (FilePrint.of(source, found.digest, name),),
            arrays.handles(),
            notes=tuple(notes),
        )


def _begins_as_pickle(head: bytes) -> bool:
    """Return whether ``head`` begins with the protocol, 2 to 5, and an instruction."""
    return len(head) > 2 and head[0] == 0x80 and head[1] in _PROTOCOLS and head[2] in _INSTRUCTIONS


def _refuse_joblib(file: File) -> None:
    if _JOBLIB in file.read(0, min(512, file.size)):
        advice = "Load it with joblib.load, and save the arrays with numpy.savez: ckpt reads .npz."
        raise not_a_checkpoint(file.uri, UnreadableFile("a file of joblib", advice), "no state dict")


def _no_arrays(file: File) -> FormatError:
    name = argument(file.name if file.remote else file.uri)
    advice = f"ckpt scan {name} shows what loading it would run; save its tensors with torch.save."
    what = "a pickle that torch did not write, without arrays of numpy"
    return not_a_checkpoint(file.uri, UnreadableFile(what, advice), "no state dict")


def _rest(file: File, end: int) -> list[str]:
    rest = file.size - end
    return [f"{count(rest, 'byte')} after the end of the pickle were not read"] if rest else []


def _joined(tree: Any, name: str) -> Any:
    """Return ``tree`` with the keys of nested dicts and lists joined; a single array becomes {``name``: array}."""
    if isinstance(tree, TensorInfo):
        return {name: tree}
    if not isinstance(tree, (dict, list, tuple)):
        return tree
    entries = tree if isinstance(tree, dict) else dict(enumerate(tree))
    if any(isinstance(entries.get(part), (dict, list)) for part in _PARTS):
        return {key: _joined_part(value) for key, value in entries.items()}
    return _joined_part(tree)


def _joined_part(tree: Any) -> Any:
    nested = isinstance(tree, (dict, list, tuple)) and holds_tensors(tree)
    return flattened(tree) if nested and _has_texts(tree) else tree


def _has_texts(tree: Any) -> bool:
    """Return whether ``tree`` is a list, or a dict whose keys are all strings: only then are nested keys joined."""
    return not isinstance(tree, dict) or all(isinstance(key, str) for key in tree)


class _Arrays:
    """Makes a ``TensorInfo`` of each array in the pickle ``file``; ``made`` is the number of arrays so far.

    ``within`` is the value of ``Storage.file`` for this file. ``paddle`` is true if the file is known to be of
    PaddlePaddle.
    """

    def __init__(self, file: File, within: str) -> None:
        self.made = 0
        self.paddle = False
        self._file, self._within = file, within
        self._segments: list[MemorySegment] = []
        self._size = 0
        self._known: dict[int, tuple[Array, Any]] = {}
        self._others = 0
        self._last = _Decoded()

    def handles(self) -> dict[str, File]:
        """Return {name in ``Storage.file``: file} for the files that hold the bytes of arrays.

        These are the pickle itself and, in memory, the arrays that the pickle stores as text.
        """
        found: dict[str, File] = {self._within: self._file}
        if self._segments:
            found[self._in_memory] = MemoryFile(f"{self._file.uri} (texts)", self._segments)
        return found

    def notes(self) -> list[str]:
        """Return the notes on arrays that are not read, and on arrays of PaddlePaddle."""
        others = f"not read: {count(self._others, 'array')} of types that torch lacks, such as strings or objects"
        notes = [others] if self._others else []
        unsigned = sum(isinstance(info, TensorInfo) and info.dtype == "uint16" for _, info in self._known.values())
        if unsigned and self._file.name.endswith(_OF_PADDLE):
            notes.append(
                f"PaddlePaddle stores bfloat16 as uint16: {count(unsigned, 'tensor')} may be of bfloat16, but the file "
                "does not say that PaddlePaddle wrote it"
            )
        return [*notes, PADDLE_NOTE] if self.paddle else notes

    def converted(self, tree: Any) -> Any:
        """Return ``tree`` with a TensorInfo in place of each array; dicts and lists are changed in place.

        An array that occurs several times becomes the same TensorInfo each time. Long strings, and arrays of types that
        torch lacks, become stand-ins.
        """
        holder = [tree]
        waiting: list[Any] = [holder]
        seen: set[int] = set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, OpaqueResult):
                node.args, node.state = (self._value(one, waiting, 0) for one in (node.args, node.state))
                waiting.append(node.items)
                continue
            for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
                node[key] = self._value(value, waiting, 0)
        if self.paddle:
            for _, info in self._known.values():
                if isinstance(info, TensorInfo) and info.dtype == "uint16":
                    info.dtype = "bfloat16"  # nobody else has these headers yet
        return holder[0]

    def _value(self, value: Any, waiting: list[Any], depth: int) -> Any:
        named = named_array(value) if isinstance(value, OpaqueResult) else None
        self.paddle |= named is not None
        value = named or value
        if isinstance(value, Array):
            return self._array(value)
        if isinstance(value, PlacedBytes):
            return OpaqueResult(GlobalName("pickle", "string"))
        if type(value) is tuple:
            if depth > _TUPLES:
                return OpaqueResult(GlobalName("pickle", "tuple"))
            return tuple(self._value(one, waiting, depth + 1) for one in value)
        if isinstance(value, (dict, list, OpaqueResult)):
            waiting.append(value)
        return value

    def _array(self, array: Array) -> Any:
        """Return the header of an array; a stand-in if torch has no dtype for its values."""
        known = self._known.get(id(array))
        if known is None:
            known = self._known[id(array)] = array, self._header(array)
        return known[1]

    def _header(self, array: Array) -> Any:
        if not array.dtype:
            self._others += 1
            return OpaqueResult(GlobalName("numpy", "array"))
        self.made += 1
        info = TensorInfo(array.dtype, array.shape)
        stride = None
        if array.fortran and len(array.shape) > 1 and info.numel:
            stride = tuple(reversed(contiguous_stride(array.shape[::-1])))
        return TensorInfo(array.dtype, array.shape, self._storage(array, info.nbytes), 0, stride)

    def _storage(self, array: Array, nbytes: int) -> Storage:
        placed = array.placed
        if placed is not None and placed.kind == "bytes":
            return Storage(self._within, placed.offset, placed.nbytes, big_endian=array.big_endian)
        segment = _Bytes(bytes(array.data)) if placed is None else _Text(self._file, placed, nbytes, self._last)
        storage = Storage(self._in_memory, self._size, nbytes, big_endian=array.big_endian)
        if nbytes:
            self._segments.append(segment)
            self._size += nbytes
        return storage

    @property
    def _in_memory(self) -> str:
        return f"{self._within} (texts)"


class _Bytes:
    """The bytes of a small array, which were read together with the pickle."""

    def __init__(self, data: bytes) -> None:
        self.nbytes = len(data)
        self._data = data

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on."""
        view[:] = self._data[offset : offset + len(view)]


class _Decoded:
    """A cache of one array: the text that was decoded last, and its bytes.

    Readers ask for one array in several pieces, so its text would otherwise be decoded several times.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.array: object = None
        self.data = bytearray()


class _Text:
    """The bytes of an array that the pickle stores as text; decoded when they are read, and cached in ``last``."""

    def __init__(self, file: File, placed: PlacedBytes, nbytes: int, last: _Decoded) -> None:
        self.nbytes = nbytes
        self._file, self._placed, self._last = file, placed, last

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from ``offset`` on; raises FormatError if the text does not encode an array of this size."""
        with self._last.lock:
            if self._last.array is not self:
                self._last.array, self._last.data = None, bytearray()
                self._last.data = self._decoded()
                self._last.array = self
            data = self._last.data
        view[:] = data[offset : offset + len(view)]

    def _decoded(self) -> bytearray:
        decoder = codecs.getincrementaldecoder("utf-8")()
        data = bytearray()
        begin, end = self._placed.offset, self._placed.offset + self._placed.nbytes
        where = f"{escape(self._file.uri)}: the values of a numpy array, at byte {begin},"
        try:
            for at in range(begin, end, _CHUNK):
                raw = self._file.read(at, min(_CHUNK, end - at))
                data += decoder.decode(raw, at + len(raw) == end).encode("latin-1")
        except UnicodeError:
            raise FormatError(f"{where} are stored as a text that is not Latin-1.", rule="numpy") from None
        if len(data) != self.nbytes:
            raise FormatError(f"{where} have {len(data)} bytes instead of {self.nbytes}.", rule="numpy")
        return data


FORMAT = _PickledArrays()
