"""Reads ``torch.distributed.checkpoint``: a folder of ``.distcp`` files; ``.metadata`` says where each tensor is.

A tensor is stored in pieces. Each piece is an archive as ``torch.save`` writes it; the header describes how the pieces
are joined. torch unpickles ``.metadata`` without restrictions; this module reads it like any other pickle, and runs
nothing.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import FormatError, UnsafeError
from ..storage.read.base import Folder, Source
from ..tensors.info import TensorInfo
from ..util.text import escape, listing
from .base import limits
from .base.format_table import is_weights
from .base.header import FilePrint, Header, naming
from .base.sharded_writer import folder_frame, folder_recipe
from .base.slice import TensorPiece, assembled
from .base.untrusted import check_sizes
from .pickle import machine as _pickle
from .pickle.torch import rebuilders
from .pickle.values import GlobalName, OpaqueResult, Unhashable, brief
from .ranks.megatron_dist import is_megatron, left_out, note_on
from .torch.dcp_files import PieceFiles
from .torch.dcp_writer import METADATA, DcpWriter
from .torch.other_tensors import dtype_of

__all__ = ["FORMAT"]

PIECES = ".distcp"
COMMON = "common.pt"
"""The file of a distributed checkpoint of Megatron-core with the entries that are not split."""


class _TorchDistributed:
    name = "torch distributed"
    magic: tuple[bytes, ...] = ()
    writer = DcpWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether this is a folder with a file ``.metadata``, or this file itself, if it is a pickle.

        A folder that lacks this file, but has the other files, is also recognised, unless it has another checkpoint.
        """
        if isinstance(source, Folder):
            names = source.names()
            others = (name for name in names if name != COMMON and is_weights(name))
            return METADATA in names or (any(name.endswith(PIECES) for name in names) and not any(others))
        return source.name == METADATA and head[:1] == b"\x80"

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, made from the metadata and all pieces.

        Raises FormatError if they are not valid or contradict each other, UnsafeError if there are too many pieces.
        """
        folder = source if isinstance(source, Folder) else source.folder()
        if isinstance(source, Folder) and METADATA not in source.names():
            raise _no_metadata(folder)
        file = folder.file(METADATA)
        with naming(file):
            if file.size > limits.PICKLE_BYTES:
                raise UnsafeError(
                    f"{escape(file.uri)} has {file.size:,} bytes; at most {limits.PICKLE_BYTES:,} bytes of pickled "
                    "metadata are read.",
                    rule="pickle size",
                )
            raw = file.read(0, file.size)
            files, others = PieceFiles(folder), list[str]()
            kind_of = left_out if is_megatron(folder) else None
            try:
                tree = _tree(
                    _pickle.load(raw, rebuild=rebuilders(), persistent=_no_storage, stored=len(raw)),
                    files,
                    kind_of,
                    others,
                )
            except BaseException:
                files.close()
                file.close()
                raise
        digest = hashlib.sha256(raw).hexdigest()
        return Header(
            format=self.name,
            tree=tree,
            files=(FilePrint.of(file, digest, METADATA), *files.headers()),
            handles={METADATA: file, **files.handles},
            recipe=folder_recipe(folder),
            notes=(*note_on(others), *files.unlisted_notes()),
            frame=lambda: folder_frame(folder, {METADATA: digest, **files.frames()}),
        )


def _no_metadata(folder: Folder) -> FormatError:
    pieces = [name for name in folder.names() if name.endswith(PIECES)]
    return FormatError(
        f"{escape(folder.uri)} is a checkpoint of torch.distributed.checkpoint without its file {METADATA}, which says "
        f"where each tensor is: it has only {listing(pieces, 2, where='')}.",
        hint="Copy the whole folder again: cp -r copies this file, but cp DIR/* leaves it out. If the original lacks "
        "it too, the save was interrupted: use an earlier checkpoint.",
        rule="dcp metadata",
    )


def _no_storage(pid: Any) -> object:
    raise FormatError(
        f"the metadata must not contain tensors, but it refers to a storage: {brief(pid)}.", rule="persistent id"
    )


def _attributes(value: Any, kind: str) -> Mapping[Any, Any]:
    """Return the attributes of ``value``, an object of torch's class ``kind``; raises FormatError for another class."""
    made = value.name if isinstance(value, OpaqueResult) else None
    if not isinstance(value, OpaqueResult) or not isinstance(made, GlobalName) or made.name != kind:
        raise FormatError(f"the metadata contains {brief(value)} instead of {kind}.", rule="dcp metadata")
    return value.attributes()


def _tree(top: Any, files: PieceFiles, kind_of: Callable[[str], str] | None, others: list[str]) -> dict[Any, Any]:
    """Return the state dict; it is nested as it was saved if the metadata contains the paths of its keys.

    ``top`` is the content of ``.metadata``. ``kind_of`` maps the key of a weight to '', and any other key to the kind
    of its state, such as "of the optimizer". Entries that are not weights are left out, and their kinds are appended to
    ``others``. If ``kind_of`` is None, all entries are returned. Raises FormatError if the metadata is not valid.
    """
    metadata = _attributes(top, "Metadata")
    entries, paths = metadata.get("state_dict_metadata"), metadata.get("planner_data")
    if not isinstance(entries, dict):
        raise FormatError("the metadata lists no tensors.", rule="dcp metadata")
    places = _places(metadata.get("storage_data"))
    files.listed |= {place.file for found in places.values() for place in found.values()}
    tree: dict[Any, Any] = {}
    for key, entry in entries.items():
        if not isinstance(key, str):
            raise FormatError("the metadata has a key that is not a string.", rule="dcp metadata")
        kind = kind_of(key) if kind_of is not None else ""
        if kind:
            others.append(kind)
            continue
        path = paths.get(key) if isinstance(paths, dict) else None
        _put(tree, path, key, _value(key, entry, places.get(key, {}), files))
    return tree


def _put(tree: dict[Any, Any], path: Any, key: str, value: Any) -> None:
    """Put ``value`` into nested dicts at ``path``; if the path is invalid or blocked by another value, under ``key``.

    Raises FormatError if ``key`` has a value already.
    """
    plain = isinstance(path, (tuple, list)) and 0 < len(path) <= limits.KEY_SEGMENTS
    node = tree
    for part in path[:-1] if plain else ():
        below = node.setdefault(part, {}) if type(part) in (str, int) else None
        if not isinstance(below, dict):
            plain = False
            break
        node = below
    last = path[-1] if plain else None
    node, last = (node, last) if type(last) in (str, int) and last not in node else (tree, key)
    if last in node:
        raise FormatError(f"two entries of the metadata would get the same key {escape(key)}.", rule="dcp metadata")
    node[last] = value


@dataclass(frozen=True)
class _PiecePlace:
    file: str
    offset: int
    length: int
    changed: bool


_Places = dict[str, _PiecePlace]
"""{offsets of a piece in the tensor: its place}. The offsets are a string, because hashes of integers could collide."""
_DATA = "no tensor"


def _places(storage_data: Any) -> dict[str, _Places]:
    """Return where each piece is stored: {key: {offsets of the piece in the tensor, as a string: place in a file}}.

    An entry that is not a tensor is stored as one piece, whose offsets are ``_DATA``. Raises FormatError if the
    metadata is not valid, UnsafeError if there are too many pieces.
    """
    if not isinstance(storage_data, dict):
        raise FormatError("the metadata does not say which file stores each tensor.", rule="dcp metadata")
    if len(storage_data) > limits.PIECES:
        raise UnsafeError(
            f"the metadata lists {len(storage_data)} pieces, more than the limit of {limits.PIECES}.", rule="pieces"
        )
    places: dict[str, _Places] = {}
    for index, info in storage_data.items():
        at = _attributes(index.value if isinstance(index, Unhashable) else index, "MetadataIndex")
        said = _attributes(info, "_StorageInfo")
        key, offset = at.get("fqn"), at.get("offset")
        file, begin, length = said.get("relative_path"), said.get("offset"), said.get("length")
        if not isinstance(key, str) or not isinstance(file, str) or type(begin) is not int or type(length) is not int:
            raise FormatError("the metadata does not say where a piece of a tensor is stored.", rule="dcp metadata")
        if posixpath.normpath(file) != file:
            raise FormatError(f"the metadata contains an invalid path of a file: {escape(file)}.", rule="dcp metadata")
        where = _DATA if offset is None else _offsets_text(offset)
        found = places.setdefault(key, {})
        if where in found:
            raise FormatError(f"the metadata lists a piece of {escape(key)} twice.", rule="dcp metadata")
        found[where] = _PiecePlace(file, begin, length, bool(said.get("transform_descriptors")))
    _check_disjoint([place for found in places.values() for place in found.values()])
    return places


def _offsets_text(offsets: Any) -> str:
    check_sizes(offsets, "offset")
    return ",".join(map(str, offsets))


def _check_disjoint(places: Sequence[_PiecePlace]) -> None:
    """Raise UnsafeError if pieces overlap: otherwise a small file could describe any number of tensors."""
    ordered = sorted(places, key=lambda place: (place.file, place.offset))
    for one, other in pairwise(ordered):
        if one.file == other.file and one.offset + one.length > other.offset:
            raise UnsafeError(
                f"two pieces of tensors overlap in {escape(one.file)} at byte {other.offset}.", rule="pieces"
            )


def _value(key: str, entry: Any, places: _Places, files: PieceFiles) -> Any:
    kind = entry.name.name if isinstance(entry, OpaqueResult) and isinstance(entry.name, GlobalName) else ""
    if kind == "BytesStorageMetadata":
        place = places.get(_DATA)
        if place is None or place.changed or not files.affords(place.length):
            return OpaqueResult(GlobalName("torch.distributed.checkpoint", "data"))
        return files.archive(place.file, place.offset, place.length)
    said = _attributes(entry, "TensorStorageMetadata")
    shape, chunks = said.get("size"), said.get("chunks")
    check_sizes(shape, "size")
    assert isinstance(shape, tuple)
    dtype = _dtype(said.get("properties"))
    if any(place.changed for place in places.values()):
        return TensorInfo(dtype, shape, opaque="its pieces have an unsupported encoding")
    if not isinstance(chunks, list):
        raise FormatError(f"the metadata lists no pieces of {escape(key)}.", rule="dcp metadata")
    if len(chunks) > max(1, len(places)):
        raise FormatError(
            f"the metadata lists {len(chunks):,} pieces of {escape(key)}, but gives the places of {len(places):,}.",
            rule="dcp metadata",
        )
    places = dict(places)  # a copy: _piece removes the places that it used
    return assembled(key, dtype, shape, [_piece(key, dtype, chunk, places=places, files=files) for chunk in chunks])


def _dtype(properties: Any) -> str:
    """Return the dtype in the properties of a tensor: a tuple, or in files of an old torch a dict."""
    attributes = _attributes(properties, "TensorProperties")
    state = properties.state
    return dtype_of(state[0] if isinstance(state, tuple) and state else attributes.get("dtype"))


def _piece(key: str, dtype: str, chunk: Any, *, places: _Places, files: PieceFiles) -> TensorPiece:
    said = _attributes(chunk, "ChunkStorageMetadata")
    offsets, sizes = said.get("offsets"), said.get("sizes")
    check_sizes(sizes, "size")
    place = places.pop(_offsets_text(offsets), None)
    if place is None:
        raise FormatError(f"the metadata does not say where a piece of {escape(key)} is stored.", rule="dcp metadata")
    info = files.archive(place.file, place.offset, place.length)
    if not isinstance(info, TensorInfo) or (info.dtype, info.shape) != (dtype, sizes):
        found = f"{info.dtype} {info.shape}" if isinstance(info, TensorInfo) else brief(info)
        raise FormatError(f"a piece of {escape(key)} is {found} but declared as {dtype} {sizes}.", rule="piece")
    assert isinstance(offsets, tuple)
    return TensorPiece(offsets, info)


FORMAT = _TorchDistributed()
