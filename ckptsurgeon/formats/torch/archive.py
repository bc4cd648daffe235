"""Reads an archive of ``torch.save`` or TorchScript: one pickle, and one record per storage.

Follows ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File
from ...tensors.dtypes import DTYPES
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape
from ..base import limits
from ..pickle import machine as _pickle
from ..pickle.state import Rebuild
from ..pickle.torch import STORAGE_DTYPES, TypedStorage
from ..pickle.values import GlobalName, OpaqueResult, brief
from ..zip.archive import Archive, ZipEntry, read_archive

__all__ = ["TorchArchive", "is_big_endian", "script_tensors", "storages_in"]

_ORDER_BYTES = 64

Templates = dict[bytes, TensorInfo]
"""{pickle: header} of single tensors; the pickles of tensors with the same dtype and shape are equal."""


class TorchArchive:
    """A zip archive of ``torch.save`` or TorchScript in ``file``.

    ``within`` is the path of the file within the checkpoint; each ``Storage`` has this path as its ``file``.
    """

    def __init__(self, file: File, within: str) -> None:
        self.zip = read_archive(file)
        self.root = _root(file, self.zip)
        self.pickle = self.zip.read(f"{self.root}data.pkl")
        self._storages = _Storages(within, self.zip, self.root)

    def load(self, rebuild: Rebuild) -> Any:
        """Return the value of the pickle, with TensorInfo in place of tensors.

        ``rebuild`` maps (module, name) of a function in the pickle to the function that makes a TensorInfo in its
        place.
        """
        stored = self.zip.entries[f"{self.root}data.pkl"].stored
        return _pickle.load(self.pickle, rebuild=rebuild, persistent=self._storages.resolve, stored=stored)

    def load_cached(self, rebuild: Rebuild, known: Templates) -> Any:
        """Return the same as ``load``; a pickle of a single tensor that is in ``known`` is not interpreted again.

        ``known`` maps pickles of single tensors to headers; a pickle that is not in ``known`` is added.
        """
        template = known.get(self.pickle)
        if template is not None and template.storage is not None:
            storage = self._storages.record(template.storage.name.rpartition("/")[2])
            if storage.nbytes == template.storage.nbytes:
                return replace(template, storage=storage)
        tree = self.load(rebuild)
        if isinstance(tree, TensorInfo) and tree.storage is not None and not tree.parts:
            known[self.pickle] = tree
        return tree

    def digest(self) -> str:
        """Return the SHA-256 of the archive's directory and pickle, which identifies the archive."""
        return hashlib.sha256(self.zip.directory + self.pickle).hexdigest()


def _root(file: File, archive: Archive) -> str:
    """Return the folder in the archive that contains ``data.pkl``, with a slash at the end; '' for the top level.

    Raises FormatError if there is none, UnsafeError if there are several.
    """
    roots = [name.removesuffix("data.pkl") for name in archive.entries if f"/{name}".endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") <= 1]
    if not roots:
        raise FormatError(
            f"{escape(file.uri)} is a zip archive without data.pkl, so it is not a torch checkpoint.",
            rule="no data.pkl",
        )
    if len(roots) > 1:
        raise UnsafeError(f"{escape(file.uri)} has data.pkl in several folders.", rule="several roots")
    return roots[0]


def is_big_endian(archive: Archive, root: str) -> bool:
    """Return whether an archive says that its numbers are big-endian; raises FormatError for an unknown byte order."""
    order = f"{root}byteorder"
    said = archive.read(order, _ORDER_BYTES) if order in archive.entries else b"little"
    if said not in (b"little", b"big"):
        raise FormatError(f"{escape(archive.file.uri)} has the unknown byte order {said!r}.", rule="byteorder")
    return said == b"big"


class _Storages:
    """Turns the persistent ids in a pickle into storages; each storage is one record of the archive."""

    def __init__(self, within: str, archive: Archive, root: str) -> None:
        self._within = within
        self._file = archive.file
        self._folder = f"{root}data/"
        self._records: dict[str, ZipEntry | Storage] = dict(archive.entries)
        self._kinds: dict[GlobalName, tuple[str, int]] = {}
        self._big = is_big_endian(archive, root)

    def resolve(self, pid: Any) -> object:
        """Return the TypedStorage for the persistent id ``('storage', type, key, location, numel)``.

        Raises FormatError if the id is not valid or does not fit the record.
        """
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise FormatError(f"the pickle refers to a storage in an unknown way: {brief(pid)}.", rule="persistent id")
        _, kind, key, _, numel = pid
        dtype, size = self._kinds.get(kind) or self._kind(kind) if type(kind) is GlobalName else ("", 0)
        if not dtype or type(key) is not str or type(numel) is not int or numel < 0:
            raise FormatError(
                f"the pickle has an invalid reference to a storage of type {brief(kind)}.", rule="persistent id"
            )
        storage = self.record(key)
        if numel * size != storage.nbytes:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(storage.name)} has {storage.nbytes} bytes, "
                f"but the pickle says {numel * size}.",
                rule="storage size",
            )
        return TypedStorage(storage, dtype)

    def record(self, key: str) -> Storage:
        """Return the storage in the record ``data/<key>``; raises FormatError if there is no such record."""
        name = self._folder + key
        storage = self._records.get(name)
        if not isinstance(storage, Storage):
            storage = self._records[name] = self._open(name, storage)
        return storage

    def _kind(self, name: GlobalName) -> tuple[str, int]:
        """Return the dtype and the bytes per element of a storage class, and remember them under ``name``."""
        dtype = STORAGE_DTYPES.get(name.name, "")
        self._kinds[name] = (dtype, DTYPES[dtype].itemsize if dtype else 0)
        return self._kinds[name]

    def _open(self, name: str, entry: ZipEntry | None) -> Storage:
        if entry is None:
            raise FormatError(f"{escape(self._file.uri)} lacks the record {escape(name)}.", rule="missing record")
        name, _, data, _, size, crc32, method, _ = entry  # reuses the archive's string for the name, to save memory
        if method:
            raise FormatError(
                f"{escape(self._file.uri)}: record {escape(name)} is compressed.",
                hint="Load the file with torch.load and save it with torch.save: compressed tensors cannot be read.",
                rule="compressed record",
            )
        return Storage(self._within, data, size, crc32 or None, name, self._big)


def storages_in(tree: Any) -> list[Storage]:
    """Return the storages of all tensors in the content of an archive, each storage once."""
    found: dict[int, Storage] = {}
    waiting, seen = [tree], set[int]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, TensorInfo):
            if node.storage is not None:
                found[id(node.storage)] = node.storage
            waiting.extend(node.parts)
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.values() if isinstance(node, dict) else node)
        elif isinstance(node, OpaqueResult) and id(node) not in seen:
            seen.add(id(node))
            waiting.extend((node.args, node.state, node.items))
    return list(found.values())


# TorchScript archives: the tensors of a scripted module, without its program.
#
# ``<root>/data.pkl`` pickles the module as an object of a class that ``<root>/code`` defines
# (torch/jit/_serialization.py and torch/csrc/jit/serialization/export_module.cpp). Its attributes are read, its code is
# not. Only the code tells parameters, buffers and other tensor attributes apart, so all of them are returned.

_CLASSES = "__torch__"


def script_tensors(tree: Any) -> dict[str, TensorInfo | OpaqueResult]:
    """Return the tensors of a scripted module by their dotted names, and the objects whose state is not a dict.

    Such an object represents a quantised layer or its weights, and contains the tensors in an order of its own.

    Raises FormatError if ``tree`` is not a scripted module, has no tensors, or has a name that is too long. Raises
    UnsafeError if there are too many submodules, or they are nested too deeply.
    """
    if not _is_module(tree):
        raise FormatError("the archive contains no scripted module.", rule="torchscript")
    found: dict[str, TensorInfo | OpaqueResult] = {}
    waiting, visits, characters = [("", tree)], 0, 0
    while waiting:
        prefix, module = waiting.pop()
        visits += 1
        if visits > limits.TENSORS or prefix.count(".") > limits.KEY_SEGMENTS or len(found) > limits.TENSORS:
            raise _endless()
        if prefix and module.state is not None and not isinstance(module.state, dict):
            found[prefix[:-1]] = module
        children = []
        for name, value in _attributes(module):
            path = _path(prefix, name)
            characters += len(path)
            if characters > limits.PATH_CHARACTERS:
                raise _endless()
            if isinstance(value, TensorInfo):
                found[path] = value
            else:
                children.append((f"{path}.", value))
        waiting += reversed(children)
    if not found:
        raise FormatError(
            "the scripted module has no tensors.",
            hint="The tensors of a frozen module are constants in its code: do not use torch.jit.freeze.",
            rule="no state dict",
        )
    return found


def _endless() -> UnsafeError:
    return UnsafeError("a scripted module has too many submodules, or they are nested too deeply.", rule="module tree")


def _path(prefix: str, name: str) -> str:
    """Return the dotted name of an attribute; raises FormatError if it would be too long.

    The length is checked before the name is built, since a small file can describe very long names.
    """
    if len(prefix) + len(name) > limits.KEY_CHARACTERS:
        raise FormatError(
            f"a scripted module has a key over {limits.KEY_CHARACTERS} characters: {escape(prefix + name[:40], 40)}.",
            rule="key length",
        )
    return f"{prefix}{name}"


def _attributes(module: OpaqueResult) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the tensors and modules that are attributes of a module."""
    for name, value in module.attributes().items():
        if isinstance(name, str) and (isinstance(value, TensorInfo) or _is_module(value)):
            yield name, value


def _is_module(value: object) -> bool:
    return (
        isinstance(value, OpaqueResult)
        and isinstance(value.name, GlobalName)
        and value.name.module.startswith(_CLASSES)
    )
