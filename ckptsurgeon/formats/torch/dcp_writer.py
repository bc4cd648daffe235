"""Lays out checkpoints of ``torch.distributed.checkpoint``: a folder of ``.distcp`` files and ``.metadata``.

Follows ``torch/distributed/checkpoint/{metadata,filesystem}.py`` (format version 1.0.0). Every tensor is one piece: an
archive as ``torch.save`` writes it. A file is a sequence of archives. torch's own writer stores a random id and the
absolute path of the folder in ``.metadata``; this writer does not, so the same tensors give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ...tensors.dtypes import DTYPES
from ..base.header import ExtraEntries, IndexFile, OutputLayout, OutTensor
from ..base.limits import PIECES
from ..zip.layout import ZipLayout
from .pickle_writer import PickleWriter, tensor_pickle
from .zip_writer import ZipWriter, torch_archive

__all__ = ["METADATA", "DcpWriter"]

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata"
_FILE = re.compile(r"__\d+_\d+\.distcp")


class _FileLayout:
    """The layout of one ``.distcp`` file: an archive for each tensor; ``pieces`` has (offset, size) of each archive.

    Tensors of the same dtype and shape share one layout, since their archives differ only in a checksum.
    """

    def __init__(self, tensors: Sequence[OutTensor]) -> None:
        self.slots: dict[str, tuple[int, int]] = {}
        self.pieces: dict[str, tuple[int, int]] = {}
        self._archives: list[ZipLayout] = []
        self.size = 0
        known: dict[tuple[str, tuple[int, ...]], ZipLayout] = {}
        for tensor in tensors:
            archive = known.get((tensor.dtype, tensor.shape))
            if archive is None:
                archive = torch_archive(tensor_pickle(tensor, "0"), [tensor._replace(key="")])
                known[tensor.dtype, tensor.shape] = archive
            offset, nbytes = archive.slots[""]
            self.slots[tensor.key] = (self.size + offset, nbytes)
            self.pieces[tensor.key] = (self.size, archive.size)
            self._archives.append(archive)
            self.size += archive.size

    def frame(self, checksums: Mapping[str, int], recipe: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes outside the tensors, as (offset, bytes) in order."""
        for (key, (begin, _)), archive in zip(self.pieces.items(), self._archives, strict=True):
            for offset, data in archive.frame({"": checksums[key]}, recipe):
                yield begin + offset, data


class _Distributed:
    """Gives the names of the files, and makes ``.metadata``, which says where each tensor is stored."""

    def names(self, number: int) -> list[str]:
        """Return the names of ``number`` data files, in the form that torch uses for the files of rank 0."""
        return [f"__0_{i}.distcp" for i in range(number)]

    def index(self, files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> Mapping[str, IndexFile]:
        """Return the name ``.metadata`` and a function that returns the bytes of this file."""
        return {METADATA: lambda _: _metadata(files)}

    def family(self, present: Collection[str], read: Callable[[str], bytes]) -> set[str]:
        """Return those of ``present``, the names of a folder's files, that belong to a checkpoint of this format."""
        return {name for name in present if name == METADATA or _FILE.fullmatch(name)}


def _metadata(files: Mapping[str, tuple[Sequence[OutTensor], OutputLayout]]) -> bytes:
    """Return the bytes of ``.metadata``: a pickled ``Metadata`` object, in which every tensor has one piece."""
    writer = _MetadataWriter()
    every = [tensor for tensors, _ in files.values() for tensor in tensors]

    writer.begin(_MODULE, "Metadata")
    writer.word("state_dict_metadata")
    writer.out += b"}("
    for tensor in every:
        writer.key(tensor.key)
        writer.tensor_metadata(tensor)
    writer.out += b"u"
    writer.word("planner_data")
    writer.out += b"}("
    for tensor in every:
        writer.key(tensor.key)
        writer.key(tensor.key)
        writer.out += b"\x85"
    writer.out += b"u"
    writer.word("storage_data")
    writer.out += b"}("
    shapes = {tensor.key: tensor.shape for tensor in every}
    for name, (_, layout) in files.items():
        assert isinstance(layout, _FileLayout)  # DcpWriter made it
        for key, (offset, length) in layout.pieces.items():
            writer.piece(key, len(shapes[key]), name, offset, length)
    writer.out += b"u"
    writer.word("storage_meta")
    writer.out += b"N"
    writer.word("version")
    writer.text("1.0.0")
    writer.end()
    return bytes(writer.out + b".")


class _MetadataWriter(PickleWriter):
    def begin(self, module: str, name: str) -> None:
        """Append the pickle instructions that begin an object of a class; the attributes of the object must follow."""
        self.name(module, name)
        self.out += b")\x81}("

    def end(self) -> None:
        """Append the pickle instructions that end the attributes of an object."""
        self.out += b"ub"

    def key(self, key: str) -> None:
        """Append the key of a tensor; it occurs four times, so it is stored in the memo."""
        if not self.fetched(key):
            self.text(key)
            self.kept(key)

    def size(self, sizes: Sequence[int]) -> None:
        """Append a ``torch.Size``; equal sizes are written only once, since a large model has few different shapes."""
        what = ("size", tuple(sizes))
        if not self.fetched(what):
            self.name("torch", "Size")
            self.integers(sizes)
            self.out += b"\x85R"
            self.kept(what)

    def tensor_metadata(self, tensor: OutTensor) -> None:
        """Append the ``TensorStorageMetadata`` of a tensor that is stored as one piece."""
        self.begin(_MODULE, "TensorStorageMetadata")
        self.word("properties")
        self.properties(tensor.dtype)
        self.word("size")
        self.size(tensor.shape)
        self.word("chunks")
        self.out += b"]"
        self.chunk(tensor.shape)
        self.out += b"a"
        self.end()

    def properties(self, dtype: str) -> None:
        """Append the ``TensorProperties`` of a tensor with the dtype ``dtype``."""
        what = ("properties", dtype)
        if not self.fetched(what):
            self.name(_MODULE, "TensorProperties")
            self.out += b")\x81("
            self.name("torch", dtype)
            self.name("torch.serialization", "_get_layout")
            self.word("torch.strided")
            self.out += b"\x85R\x89"
            self.name(_MODULE, "_MEM_FORMAT_ENCODING")
            self.out += b"K\x00\x85R\x89tb"
            self.kept(what)

    def chunk(self, shape: tuple[int, ...]) -> None:
        """Append the ``ChunkStorageMetadata`` of a tensor that is stored as one piece."""
        what = ("chunk", shape)
        if not self.fetched(what):
            self.begin(_MODULE, "ChunkStorageMetadata")
            self.word("offsets")
            self.size((0,) * len(shape))
            self.word("sizes")
            self.size(shape)
            self.end()
            self.kept(what)

    def piece(self, key: str, dims: int, file: str, offset: int, length: int) -> None:
        """Append a dict item, ``MetadataIndex`` → ``_StorageInfo``, which says where a tensor is stored.

        The tensor ``key`` has ``dims`` dimensions. It is in the ``length`` bytes of ``file`` from ``offset`` on.
        """
        self.begin(_MODULE, "MetadataIndex")
        self.word("fqn")
        self.key(key)
        self.word("offset")
        self.size((0,) * dims)
        self.word("index")
        self.integer(0)
        self.end()
        self.begin("torch.distributed.checkpoint.filesystem", "_StorageInfo")
        self.word("relative_path")
        self.word(file)
        self.word("offset")
        self.integer(offset)
        self.word("length")
        self.integer(length)
        self.end()


class DcpWriter:
    """Writes folders that ``torch.distributed.checkpoint`` loads."""

    name = "dcp"
    sharding = _Distributed()
    suffixes: tuple[str, ...] = ()
    carries = False
    shares = False
    most = PIECES
    dtypes = frozenset(name for name in ZipWriter.dtypes if DTYPES[name].kind != "quantized")

    def layout(
        self,
        tensors: Sequence[OutTensor],
        metadata: Mapping[str, str],
        recipe: Sequence[str],
        beside: ExtraEntries | None = None,
    ) -> _FileLayout:
        """Return the layout of a file; ``metadata`` is stored only in the recipe file in the same folder."""
        return _FileLayout(tensors)
