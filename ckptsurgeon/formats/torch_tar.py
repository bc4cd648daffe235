"""Reads the checkpoints of torch versions before 0.1.10: a tar archive of pickles and storages.

The member ``storages`` begins with the count of storages; each is a pickle of (key, location, type), an int64 number of
elements, and the data. A list of views follows: (key, key of the viewed storage, offset, size). ``tensors`` begins with
the count of tensors; each is a pickle of (key, key of its storage, type), its number of dimensions, sizes, strides and
offset. ``pickle`` is the saved object, which refers to storages and tensors by their keys. Follows ``legacy_load`` in
``torch/serialization.py``, which still reads these archives.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from ..errors import FormatError, UnsafeError
from ..storage.read.base import File, Source
from ..tensors.dtypes import DTYPES
from ..tensors.info import Storage, TensorInfo
from .base import limits
from .base.header import FilePrint, Header, naming
from .pickle.machine import PickleMachine, load
from .pickle.torch import STORAGE_DTYPES, TensorBuilder, TypedStorage, rebuilders
from .pickle.values import GlobalName
from .torch.tar import TarMember, is_tar, members

__all__ = ["FORMAT"]

MEMBERS = ("sys_info", "pickle", "tensors", "storages")
_FIRST_READ = 512

Storages = dict[str, TypedStorage]


class _TorchTar:
    name = "torch tar"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether this is a tar archive; its content is checked when it is read."""
        return isinstance(source, File) and is_tar(head)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, made from pickles and storages; raises FormatError if torch did not write the archive."""
        assert isinstance(source, File)
        with naming(source):
            return self._read(source, name)

    def _read(self, file: File, name: str) -> Header:
        found = members(file, MEMBERS)
        missing = [one for one in MEMBERS if one not in found]
        if missing:
            raise FormatError(f"the tar archive lacks the member {missing[0]}.", rule="tar members")
        _check_order(_content(file, found["sys_info"]))
        storages = _storages(_MemberReader(file, found["storages"]), name)
        described, pickled = (_content(file, found[one]) for one in ("tensors", "pickle"))
        objects = {**storages, **_tensors(_MemberReader(file, found["tensors"]), storages)}
        tree = load(pickled, rebuild=rebuilders(), persistent=lambda pid: _object(objects, pid))
        places = repr([(key, one.storage.offset, one.storage.nbytes, one.dtype) for key, one in storages.items()])
        digest = hashlib.sha256(described + pickled + places.encode()).hexdigest()
        return Header(self.name, tree, (FilePrint(name, file.size, digest, file.mtime_ns),), {name: file})


def _content(file: File, member: TarMember) -> bytes:
    if member.end - member.begin > limits.PICKLE_BYTES:
        size = member.end - member.begin
        raise UnsafeError(
            f"{member.name} of the tar archive has {size:,} bytes; at most {limits.PICKLE_BYTES:,} are read.",
            rule="record size",
        )
    return file.read(member.begin, member.end - member.begin)


def _check_order(raw: bytes) -> None:
    system = load(raw, rebuild={}, persistent=_no_object)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise FormatError(
            "the archive is from a big-endian machine: torch would misread its numbers.", rule="byte order"
        )


class _MemberReader:
    """Reads a member of the archive from front to back: pickles, and the numbers between them."""

    def __init__(self, file: File, member: TarMember) -> None:
        self.file, self.at, self.end = file, member.begin, member.end
        self._left = limits.TAR_PICKLES_BYTES

    def value(self) -> Any:
        """Return the value of the next pickle; raises FormatError if the pickle has a persistent id.

        The length of a pickle is not stored, so more bytes are read until it is complete.
        """
        size = _FIRST_READ
        while True:
            data = self.file.read(self.at, min(size, self.end - self.at))
            machine = PickleMachine(data, rebuild={}, persistent=_no_object)
            try:
                value = machine.run()
            except UnsafeError:
                raise
            except FormatError:
                if len(data) == self.end - self.at or size > self._left:
                    raise
                size *= 8
            else:
                self.at += machine.position
                self._left -= machine.position
                if self._left < 0:
                    raise UnsafeError(
                        "the pickles of the tar archive have more bytes in total than the limit of "
                        f"{limits.TAR_PICKLES_BYTES:,}.",
                        rule="tar pickles",
                    )
                return value

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """Return the next numbers; ``layout`` is their format string for the module ``struct``."""
        begin = self.at
        self.skip(struct.calcsize(layout))
        return struct.unpack(layout, self.file.read(begin, self.at - begin))

    def skip(self, nbytes: int) -> int:
        """Skip ``nbytes`` bytes, and return the offset at which they begin.

        Raises FormatError if the member is too short.
        """
        if not 0 <= nbytes <= self.end - self.at:
            raise FormatError(
                "a member of the tar archive is shorter than the data that it announces.", rule="tar size"
            )
        self.at += nbytes
        return self.at - nbytes

    def count(self) -> int:
        """Read the next pickle, a number, and return it: so many items follow.

        Raises UnsafeError if it is not a number of items, or if there are too many.
        """
        number = self.value()
        if type(number) is not int or not 0 <= number <= limits.TENSORS:
            raise UnsafeError(
                f"the number of storages or tensors in the tar archive is not an integer from 0 to {limits.TENSORS}.",
                rule="tensors",
            )
        return number

    def check_end(self) -> None:
        """Raise FormatError if bytes are left in the member."""
        if self.at != self.end:
            raise FormatError("a member of the tar archive has bytes after its last item.", rule="tar size")


def _storages(stream: _MemberReader, within: str) -> Storages:
    found: Storages = {}
    for _ in range(stream.count()):
        key, _, kind = _fields(stream.value(), 3)
        dtype = STORAGE_DTYPES.get(kind.name) if type(kind) is GlobalName else None
        if dtype is None or _key(key) in found:
            raise FormatError(
                "the tar archive has a storage of an unknown type, or lists a storage twice.", rule="tar storages"
            )
        (numel,) = stream.numbers("<q")
        nbytes = numel * DTYPES[dtype].itemsize
        storage = Storage(within, stream.skip(nbytes), nbytes, None, _key(key))
        found[_key(key)] = TypedStorage(storage, dtype)
    views = stream.value()
    if type(views) is not list:
        raise FormatError("the tar archive does not list the views of its storages.", rule="tar storages")
    stream.check_end()
    return found | {_key(row[0]): _view(found, row) for row in (_fields(view, 4) for view in views)}


def _view(storages: Storages, row: tuple[Any, ...]) -> TypedStorage:
    """Return the view that ``row`` describes: (key, key of the viewed storage, offset and size in elements).

    ``storages`` has the storages by key. Raises FormatError if the view is not valid.
    """
    target, root, offset, numel = row
    whole = storages.get(_key(root))
    if whole is None or _key(target) in storages or not all(type(n) is int and n >= 0 for n in (offset, numel)):
        raise FormatError("the tar archive has a malformed view of a storage.", rule="tar storages")
    itemsize = DTYPES[whole.dtype].itemsize
    if (offset + numel) * itemsize > whole.storage.nbytes:
        raise FormatError("the tar archive has a view that reaches beyond its storage.", rule="tar storages")
    return TypedStorage(whole.storage, whole.dtype, offset * itemsize)


def _tensors(stream: _MemberReader, storages: Storages) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    make = TensorBuilder()
    for _ in range(stream.count()):
        key, at, _ = _fields(stream.value(), 3)
        dimensions, _ = stream.numbers("<ii")
        if not 0 <= dimensions <= limits.DIMENSIONS:
            raise FormatError(
                f"a tensor of the tar archive has {dimensions} dimensions; from 0 to {limits.DIMENSIONS} are valid.",
                rule="tensor size",
            )
        size, stride = (stream.numbers(f"<{dimensions}q") for _ in range(2))
        (offset,) = stream.numbers("<q")
        storage = storages.get(_key(at))
        if storage is None or _key(key) in storages or _key(key) in found:
            raise FormatError("a tensor of the tar archive has no storage, or is listed twice.", rule="tar tensors")
        found[_key(key)] = make.rebuild(storage, offset, size, stride)
    stream.check_end()
    return found


def _fields(value: Any, number: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != number:
        raise FormatError("the tar archive does not describe its content as torch does.", rule="tar pickles")
    return value


def _key(value: Any) -> str:
    """Return a key, which is an integer or a string of digits, as a string; raises FormatError if it is neither.

    As dict keys, integers could be chosen so that their hashes collide; the hashes of strings cannot be predicted.
    """
    if type(value) is int and 0 <= value < 1 << 64:
        return str(value)
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 20:
        return str(int(value))
    raise FormatError("the tar archive has a key that is not a number.", rule="persistent id")


def _no_object(pid: Any) -> object:
    raise FormatError(
        "a pickle of the tar archive refers to a tensor, but only the member with the name pickle may do so.",
        rule="persistent id",
    )


def _object(objects: dict[str, Any], pid: Any) -> object:
    """Return the object with the persistent id ``pid``: a tensor, a storage, or a class.

    The source code that is stored with a class is ignored. Raises FormatError if there is no such object.
    """
    if type(pid) is tuple and pid:
        return pid[0]
    found = objects.get(_key(pid))
    if found is None:
        raise FormatError("the pickle refers to a tensor that is not in the archive.", rule="persistent id")
    return found


FORMAT = _TorchTar()
