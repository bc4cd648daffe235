"""Reads the weights of programs that ``torch.export.save`` wrote (``.pt2``): zip archives with the weights in records.

Follows ``torch/export/pt2_archive/_package.py`` and ``torch/_export/serde/schema.py``. A JSON file has the record,
the dtype, the sizes and the strides of each tensor, and each record has the bytes of one storage. In older archives
``data/weights/<model>.pt``, or ``serialized_state_dict.pt`` (torch 2.6), is an archive of ``torch.save`` itself.
Neither the program nor any object is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.read.base import File, Source
from ...tensors.dtypes import DTYPES
from ...tensors.info import Storage, TensorInfo
from ...util.text import count, escape, listing
from ..base import limits
from ..base.header import FilePrint, Header, naming
from ..base.slice import FileSlice
from ..base.untrusted import parse_json, unique_keys
from ..pickle.torch import TypedStorage, form_of, rebuilders, view
from ..pickle.values import GlobalName, OpaqueResult
from ..torch.other_tensors import unknown
from ..torch_zip import TorchArchive, is_big_endian, storages_in
from ..zip.archive import EXPORT_MARK, EXPORT_OLD, Archive, ZipEntry, is_of_export, names_in, read_archive

__all__ = ["FORMAT"]

_VERSION = "archive_version"
_WEIGHTS, _CONSTANTS, _COMPILED = "data/weights/", "data/constants/", "data/aotinductor/"
_CONFIG = {_WEIGHTS: "_weights_config.json", _CONSTANTS: "_constants_config.json"}
_ENTRY = {_WEIGHTS: "state_dict", _CONSTANTS: "constants"}
"""{folder: key for its tensors in the tree}. Buffers that are not persistent are constants, too."""
_SAVED = ".pt"
_MODEL = re.compile(r"models/(.+)\.json")
_OWN = re.compile(r"models/.*|data/(weights|constants|sample_inputs)/.*|archive_\w+|\.data/.*|byteorder|version")
"""Matches the records of the parts of a program; all other records are from the user or from other tools."""
_OBJECTS = ("custom_obj_", "opaque_obj_")
_STRIDED = 7
_MARK_BYTES = 64
_DTYPES: Mapping[int, str] = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""torch's dtypes by their number in ``ScalarType`` of ``schema.py``, which differs from the numbers in torch's C++."""


class _TorchExport:
    name = "torch export"
    magic = (b"PK\3\4",)

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether this is a zip archive with a record that only archives of torch.export have."""
        if not isinstance(source, File) or not head.startswith(self.magic):
            return False
        with suppress(FormatError):
            return is_of_export(names_in(source))
        return False

    def read(self, source: Source, name: str = "") -> Header:
        """Return the header, from the directory and the descriptions of tensors.

        The tree of one program has its parameters and buffers in ``state_dict``, and other tensors in ``constants``. If
        there are several programs, the result has such a tree for each program, by its name. Raises FormatError if the
        archive is damaged.
        """
        assert isinstance(source, File)
        with naming(source):
            archive = read_archive(source)
            reader = _reader(archive, name)
            tree = reader.programs()
            digest = reader.digest.hexdigest()
        return Header(
            self.name,
            next(iter(tree.values())) if len(tree) == 1 else tree,
            (FilePrint.of(source, digest, name),),
            {name: archive.file},
            notes=reader.notes(len(tree)),
        )


def _reader(archive: Archive, within: str) -> _Reader:
    """Return the reader of an archive; raises FormatError for an unknown version, UnsafeError for several roots."""
    if EXPORT_OLD in archive.entries:
        return _Reader(archive, within, "", old=True)
    roots = [name.removesuffix(EXPORT_MARK) for name in archive.entries if is_of_export([name])]
    if len(roots) != 1:
        raise UnsafeError(
            f"the archive has {EXPORT_MARK} in {count(len(roots), 'folder')}, not in one.", rule="several roots"
        )
    for record, known in ((EXPORT_MARK, b"pt2"), (_VERSION, b"0")):
        name = roots[0] + record
        said = archive.read(name, _MARK_BYTES) if name in archive.entries else known
        if said.strip() != known:
            raise FormatError(
                f"the record {record} contains {said.decode('utf-8', 'replace')!r}, not {known.decode()!r}.",
                rule="pt2 version",
            )
    return _Reader(archive, within, roots[0])


@contextmanager
def _naming_tensor(key: str) -> Iterator[None]:
    """Add the key of a tensor to the message of a FormatError from the ``with`` block."""
    try:
        yield
    except FormatError as error:
        raise type(error)(
            f"the tensor {escape(key)}: {error.message}", hint=error.hint, details=error.details, rule=error.rule
        ) from None


@dataclass
class _Reader:
    """Reads the tensors in an archive whose records are in the folder ``root``; ``old`` is true for torch up to 2.6.

    ``used`` has the records that were read; ``digest`` identifies the directory and the descriptions of tensors.
    """

    archive: Archive
    within: str
    root: str
    old: bool = False
    used: set[str] = field(default_factory=set)
    digest: Any = field(default_factory=hashlib.sha256)
    _raw: dict[str, tuple[str, Storage]] = field(default_factory=dict)
    _saved: dict[str, Any] = field(default_factory=dict)
    _pickled: int = 0
    _objects: int = 0
    _compiled: list[str] = field(default_factory=list)

    def programs(self) -> dict[str, dict[str, Any]]:
        """Return {name of a program: its tensors, nested}; raises FormatError if none can be read."""
        self.digest.update(self.archive.directory)
        if self.old:
            return {"": self._old_program()}
        found = {name: self._program(name) for name in self._names()}
        for name, weights in self._compiled_programs():
            key = name if name not in found else f"{name} (AOTInductor)"
            found[key] = {_ENTRY[_WEIGHTS]: weights}
        if not found:
            what = "compiled programs (AOTInductor), which contain their weights" if self._compiled else "no programs"
            raise FormatError(
                f"the archive has {what}.",
                hint="Use the checkpoint of the model, or save the program with torch.export.save.",
                rule="no state dict",
            )
        return found

    def notes(self, programs: int = 1) -> tuple[str, ...]:
        """Return the notes on the parts of the archive that were not read; ``programs`` is the number of programs."""
        is_one = programs == 1
        of, not_read, its = ("a program", "program", "its") if is_one else (f"{programs} programs", "programs", "their")
        also = f", and not {count(self._objects, 'object')} among {its} constants" if self._objects else ""
        notes = [f"read the tensors of {of} of torch.export, not the {not_read}{also}"]
        names = [name.removeprefix(self.root) for name in self.archive.entries]
        unused = [one for one in names if one.startswith((_WEIGHTS, _CONSTANTS)) and one not in self.used]
        if unused:
            notes.append(f"not read, since no tensor refers to them: {listing(unused, 4, where='')}")
        if self._compiled:
            notes.append(f"not read, compiled by AOTInductor: {listing(self._compiled, 4, where='')}")
        others = [one for one in names if not (_OWN.fullmatch(one) or one.startswith((_COMPILED, "serialized_")))]
        if others:
            notes.append(f"also in the archive, and not read: {listing(others, 4, where='')}")
        return tuple(notes)

    def _old_program(self) -> dict[str, Any]:
        found = {}
        for key in _ENTRY.values():
            names = [f"serialized_{key}{end}" for end in (_SAVED, ".json")]
            name = next((one for one in names if one in self.archive.entries), names[0])
            if key == _ENTRY[_WEIGHTS] or name in self.archive.entries:
                found[key] = self._dict_in(name)
        return found

    def _names(self) -> list[str]:
        """Return the names of the programs, in the order of the archive."""
        found: dict[str, None] = {}
        for name in self.archive.entries:
            inner = name.removeprefix(self.root)
            if program := _MODEL.fullmatch(inner):
                found[program[1]] = None
            for folder, end in _CONFIG.items():
                for last in (end, _SAVED):
                    if inner.startswith(folder) and inner.endswith(last):
                        found[inner.removeprefix(folder).removesuffix(last)] = None
        return list(found)

    def _program(self, name: str) -> dict[str, Any]:
        return {_ENTRY[folder]: self._tensors(folder, name) for folder in _CONFIG}

    def _tensors(self, folder: str, name: str) -> dict[Any, Any]:
        saved = f"{folder}{name}{_SAVED}"
        if self.root + saved in self.archive.entries:
            return self._dict_in(saved)
        described = self._json(f"{folder}{name}{_CONFIG[folder]}")
        config = described.get("config") if isinstance(described, dict) else None
        if not isinstance(config, dict):
            raise FormatError(
                f"{escape(folder + name)}{_CONFIG[folder]} has no valid entry config, the list of tensors.",
                rule="pt2 config",
            )
        found = {}
        for key, one in config.items():
            with _naming_tensor(key):
                found[key] = self._value(folder, one)
        return found

    def _json(self, name: str) -> Any:
        """Return the value of a JSON file in the archive; raises FormatError if it is missing or not valid."""
        self._record(name)
        raw = self.archive.read(self.root + name, limits.INDEX_BYTES)
        self.digest.update(raw)
        try:
            return parse_json(raw, unique_keys)
        except ValueError as error:
            raise FormatError(f"{escape(name)} is not valid JSON: {error}.", rule="pt2 config") from None

    def _record(self, name: str) -> ZipEntry:
        entry = self.archive.entries.get(self.root + name)
        if entry is None:
            raise FormatError(f"the record {escape(self.root + name)} is missing.", rule="missing record")
        self.used.add(name)
        return entry

    def _value(self, folder: str, said: Any) -> object:
        """Return the tensor that ``said``, an entry of a configuration, describes; a stand-in if it is an object.

        ``folder`` is the folder in the archive with the record that the entry refers to. Raises FormatError if the
        entry is not valid.
        """
        path = said.get("path_name") if isinstance(said, dict) else None
        if not isinstance(path, str) or type(said.get("use_pickle")) is not bool:
            raise FormatError("the description has no valid path_name or no valid use_pickle.", rule="pt2 config")
        if path.startswith(_OBJECTS):
            self._record(folder + path)
            self._objects += 1
            return OpaqueResult(GlobalName("torch.export", path.rpartition("_")[0]))
        if said["use_pickle"]:
            return self._saved_in(folder + path)
        return self._described(folder + path, said.get("tensor_meta"))

    def _described(self, name: str, meta: Any) -> TensorInfo:
        """Return a tensor whose storage is the record ``name``, as ``meta`` describes it.

        Raises FormatError if ``meta`` is not valid or does not fit the record.
        """
        number = meta.get("dtype") if isinstance(meta, dict) else None
        dtype = _DTYPES.get(number) if type(number) is int else None
        if dtype is None:
            is_number = type(number) is int
            why = (
                f"dtype has the unknown number {str(number)[:20]}"
                if is_number
                else "description gives no number for the dtype"
            )
            raise FormatError(f"the {why}.", rule="tensor dtype")
        sizes, strides = _integers(meta.get("sizes")), _integers(meta.get("strides"))
        form = form_of(sizes, strides)
        if meta.get("layout") != _STRIDED:
            self._record(name)
            return unknown("it is sparse or has another special layout", dtype, sizes)
        known, storage = self._raw.get(name) or (dtype, self._storage(name, DTYPES[dtype].itemsize))
        if known != dtype:  # torch would read all tensors of a record with the dtype of the first
            raise FormatError(
                f"the dtype is {dtype}, but another tensor in the same record {escape(name)} is {known}.",
                rule="pt2 config",
            )
        self._raw[name] = dtype, storage
        if not storage.nbytes and 0 not in sizes:
            return unknown("it was saved without values, from a fake tensor", dtype, sizes)
        return view(TypedStorage(storage, dtype), _integer(meta.get("storage_offset")), form)

    def _storage(self, name: str, itemsize: int) -> Storage:
        entry = self._plain(name)
        if entry.size % itemsize:
            raise FormatError(f"the record {escape(name)} ends inside an element.", rule="storage size")
        big = is_big_endian(self.archive, self.root)
        return Storage(self.within, entry.data, entry.size, entry.crc32 or None, name, big)

    def _plain(self, name: str) -> ZipEntry:
        entry = self._record(name)
        if entry.method:
            raise FormatError(
                f"the record {escape(name)} is compressed.",
                hint="Unpack the archive and pack it again without compression: compressed tensors cannot be read.",
                rule="compressed record",
            )
        return entry

    def _saved_in(self, name: str) -> Any:
        """Return the content of a record that ``torch.save`` wrote."""
        if name not in self._saved:
            self._saved[name] = self._load(name)
        return self._saved[name]

    def _load(self, name: str) -> Any:
        entry = self._plain(name)
        part = FileSlice(self.archive.file, entry.data, entry.size)
        part.uri = f"{part.uri}/{name}"
        inner = TorchArchive(part, self.within)
        self._pickled += len(inner.pickle)
        if self._pickled > limits.EXPORT_PICKLES:
            raise UnsafeError(
                f"the pickles in the archive have more bytes in total than the limit of {limits.EXPORT_PICKLES}.",
                rule="pickle size",
            )
        tree = inner.load(rebuilders())
        self.digest.update(inner.digest().encode())
        for storage in storages_in(tree):
            storage.offset += entry.data
        return tree

    def _dict_in(self, name: str) -> dict[Any, Any]:
        tree = self._saved_in(name)
        if not isinstance(tree, dict):
            raise FormatError(f"{escape(name)} does not contain a dict of tensors.", rule="no state dict")
        return tree

    def _compiled_programs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the weights of each compiled program whose weights are records of the archive.

        All other compiled programs contain their weights in themselves: their names are added to ``_compiled``. Raises
        FormatError for a configuration that is not valid.
        """
        end = "/weights_config.json"
        inner = [name.removeprefix(self.root) for name in self.archive.entries]
        inner = [name.removeprefix(_COMPILED) for name in inner if name.startswith(_COMPILED)]
        for name in dict.fromkeys(name.partition("/")[0] for name in inner):
            if f"{name}{end}" not in inner:
                self._compiled.append(name)
                continue
            config = self._json(f"{_COMPILED}{name}{end}")
            if not isinstance(config, dict):
                raise FormatError(
                    f"the configuration of the weights of {escape(name)} is not a dict.", rule="pt2 config"
                )
            weights = {}
            for key, said in config.items():
                with _naming_tensor(key):
                    weights[key] = self._compiled_weight(said)
            yield name, weights

    def _compiled_weight(self, said: Any) -> TensorInfo:
        if not isinstance(said, list) or len(said) != 4 or not isinstance(said[0], str):
            raise FormatError("its entry is not a list [record, shape, stride, offset].", rule="pt2 config")
        name, shape, stride, offset = said
        whole = self._saved_in(_WEIGHTS + name)
        if not isinstance(whole, TensorInfo):
            raise FormatError(f"the record {escape(name)} is not a tensor.", rule="pt2 config")
        if whole.opaque or whole.storage is None:
            return whole
        sizes, strides = (tuple(one) if isinstance(one, list) else one for one in (shape, stride))
        return view(TypedStorage(whole.storage, whole.dtype), offset, form_of(sizes, strides))


def _integer(said: Any) -> Any:
    """Return the number in ``{"as_int": number}``; None for other forms, such as a size that depends on the input."""
    return said.get("as_int") if isinstance(said, dict) else None


def _integers(said: Any) -> Any:
    """Return a tuple of the numbers in a list of ``{"as_int": number}``; the caller checks the numbers."""
    return tuple(map(_integer, said[: limits.DIMENSIONS + 1])) if isinstance(said, list) else None


FORMAT = _TorchExport()
