"""Reads TensorFlow's V2 checkpoints: an index, ``NAME.index``, and data files, ``NAME.data-00000-of-00001``.

The index describes the tensors; the data files contain only their bytes. A user passes the index, ``NAME`` alone, or
the folder. In a folder, the file ``best_dev_checkpoint`` or ``checkpoint`` says which checkpoint to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from ..errors import FormatError, SourceError, UnsafeError
from ..storage.read.base import File, Folder, Source
from ..tensors.composition import leaves
from ..tensors.dtypes import DTYPES as SIZES
from ..tensors.info import Storage, TensorInfo
from ..util.text import escape
from .base.header import FilePrint, Header, digest_outside, naming
from .base.sharded_writer import folder_frame, folder_recipe
from .base.untrusted import check_sizes
from .pickle.values import GlobalName, OpaqueResult
from .tf.bundle import DTYPES, Bundle, BundleEntry, join_slices, read_bundle, slice_key
from .tf.folder import LAST, chosen, is_folder, key_of, small_file, training_files, tree_of
from .tf.leveldb import is_table
from .tf.writer import TensorFlowWriter

__all__ = ["FORMAT"]

_INDEX = ".index"
_KINDS = {7: "string", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 20: "resource",
          21: "variant"}  # fmt: skip
"""{number: name} of TensorFlow's types that are not plain numbers; variables of these types are only listed."""


class _TensorFlow:
    name = "tensorflow"
    magic: tuple[bytes, ...] = ()
    writer = TensorFlowWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a file ends like a LevelDB table, or a folder has TensorFlow checkpoints."""
        return is_table(source) if isinstance(source, File) else is_folder(source)

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header of a checkpoint; ``source`` is its index or its folder.

        Raises FormatError if the index breaks a rule or does not fit the data files.
        """
        folder: Folder | None = None
        named: list[FilePrint] = []
        notes = []
        if not isinstance(source, File):
            folder, choice = source, chosen(source)
            notes.append(choice.note)
            named.append(choice.file)
            source = source.file(choice.prefix + _INDEX)
        with naming(source):
            bundle = read_bundle(source)
        files = {source.name: source}
        try:
            with naming(source):
                tree = _tree(bundle, _Shards(source, bundle, files))
            return Header(
                format=self.name,
                tree={**dict(training_files(source)), **tree},
                files=(*(_file_header(file) for file in files.values()), *named),
                handles=files,
                notes=tuple(notes),
                recipe=folder_recipe(folder) if folder is not None else None,
                frame=lambda: _frame(folder, files, tree) if folder is not None else "",
            )
        except BaseException:
            for file in files.values():
                file.close()
            raise


def _file_header(file: File) -> FilePrint:
    """Return the fingerprint of an open file; for an index, it has the SHA-256 of all bytes.

    A data file has no header, so its fingerprint has the SHA-256 of the empty byte string.
    """
    digest = hashlib.sha256(file.read(0, file.size) if file.name.endswith(_INDEX) else b"")
    return FilePrint.of(file, digest.hexdigest(), file.name)


def _frame(folder: Folder, files: Mapping[str, File], tree: Mapping[str, Any]) -> str:
    """Return one digest of all bytes outside the model's tensors: of the index, the training state and the recipe."""
    payload: dict[str, list[tuple[int, int]]] = {name: [] for name in files}
    for info in tree.get("model", {}).values():
        for leaf in leaves(info):
            if leaf.storage is not None:
                payload[leaf.storage.file].append((leaf.storage.offset, leaf.storage.offset + leaf.storage.nbytes))
    digests = {name: digest_outside(file, sorted(payload[name])) for name, file in files.items()}
    digests[LAST] = hashlib.sha256(small_file(folder, LAST) or b"").hexdigest()
    return folder_frame(folder, digests)


class _Shards:
    """The data files of an index, opened when they are needed."""

    def __init__(self, index: File, bundle: Bundle, files: dict[str, File]) -> None:
        self._index = index
        self._bundle = bundle
        self._files = files
        self._prefix = index.name.removesuffix(_INDEX)

    def info(self, name: str, entry: BundleEntry) -> TensorInfo:
        """Return the header of one tensor; raises FormatError if the data file or its bytes are missing."""
        dtype = DTYPES[entry.dtype]
        check_sizes(entry.shape, "shape")
        if prod(entry.shape) * SIZES[dtype].bits // 8 != entry.size:
            raise FormatError(
                f"the variable {escape(name)} is {dtype} {entry.shape}, but has {entry.size} bytes.", rule="tensor size"
            )
        if entry.shard >= self._bundle.shards:
            raise FormatError(
                f"the variable {escape(name)} is in data file {entry.shard}, "
                f"but there are only {self._bundle.shards} data files (counted from 0).",
                rule="shard",
            )
        file = self._file(entry.shard)
        if entry.offset + entry.size > file.size:
            raise FormatError(
                f"the variable {escape(name)} is at bytes {entry.offset} to {entry.offset + entry.size} of "
                f"{escape(file.name)}, which has {file.size} bytes: this file is truncated.",
                rule="cut short",
            )
        storage = Storage(file.name, entry.offset, entry.size, None, name, self._bundle.big_endian, crc32c=entry.crc32c)
        return TensorInfo(dtype, entry.shape, storage)

    def _file(self, shard: int) -> File:
        name = f"{self._prefix}.data-{shard:05d}-of-{self._bundle.shards:05d}"
        if name not in self._files:
            try:
                self._files[name] = self._index.folder().file(name)
            except SourceError:
                raise FormatError(
                    f"the data file {escape(name)} is missing or cannot be read.", rule="missing shard"
                ) from None
        return self._files[name]


def _tree(bundle: Bundle, shards: _Shards) -> dict[str, Any]:
    """Return the variables as a dict of state dicts, as ``tree_of`` does.

    Variables that are not tensors of numbers (of strings, for example) are next to the state dicts, each as a stand-in
    under its own key. Raises FormatError if a name is not valid or a slice is missing.
    """
    slices = {slice_key(key, part) for key, entry in bundle.entries.items() for part in entry.slices}
    variables: dict[str, TensorInfo] = {}
    others: dict[str, Any] = {}
    for key, entry in bundle.entries.items():
        if key in slices:
            continue
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError("the index has a variable whose name is not UTF-8.", rule="name") from None
        if entry.dtype in DTYPES:
            variables[name] = _variable(key, name, entry, entries=bundle.entries, shards=shards)
        else:
            others[key_of(name)] = OpaqueResult(
                GlobalName("tensorflow", _KINDS.get(entry.dtype, f"type {entry.dtype}"))
            )
    _check_disjoint(list(bundle.entries.values()))
    tree = tree_of(variables)
    return {**{f"{key} (variable)" if key in tree else key: value for key, value in others.items()}, **tree}


def _variable(
    key: bytes, name: str, entry: BundleEntry, *, entries: Mapping[bytes, BundleEntry], shards: _Shards
) -> TensorInfo:
    if not entry.slices:
        return shards.info(name, entry)
    parts = []
    for part in entry.slices:
        found = entries.get(slice_key(key, part))
        if found is None or found.slices or found.dtype not in DTYPES:
            raise FormatError(f"a slice of the variable {escape(name)} is missing.", rule="slice")
        parts.append(shards.info(name, found))
    return join_slices(name, entry, parts)


def _check_disjoint(entries: Sequence[BundleEntry]) -> None:
    """Raise UnsafeError if tensors overlap: otherwise a small file could describe any number of tensors."""
    places = sorted((entry.shard, entry.offset, entry.offset + entry.size) for entry in entries if entry.size)
    for (shard, _, end), (other, begin, _) in pairwise(places):
        if shard == other and begin < end:
            raise UnsafeError(f"two tensors of the index overlap in data file {shard} at byte {begin}.", rule="overlap")


FORMAT = _TensorFlow()
