"""Reads GGUF, the format of llama.cpp: typed metadata, the headers of the tensors, and their aligned bytes.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Dimensions are stored from the last to the first. Rows of a
quantised tensor are blocks of codes with their scales (``tensors.dtypes.BLOCKS``); the shape of such a tensor is given
in bytes. To read a model that llama.cpp split into several files, pass the first file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from ..errors import FormatError, SourceError
from ..storage.read.base import File, Source
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import escape, listing, number_in
from .base import limits
from .base.header import UNSEALED, FilePrint, Header, StoredEntry, digest_outside, naming, seal_of
from .ggml.reader import GgufHeader, read_one
from .ggml.values import TEXT
from .ggml.writer import RECIPE_KEY, RESERVED, SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS, GgufWriter

__all__ = ["FORMAT"]

_Entry = TypeVar("_Entry")


class _Gguf:
    name = "gguf"
    magic = (b"GGUF",)
    writer = GgufWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether the file begins with the magic bytes GGUF."""
        return isinstance(source, File) and head.startswith(self.magic)

    def read(self, source: Source, name: str = "") -> Header:
        """Check the header of the file and return it; raises FormatError or UnsafeError if it is not valid.

        If the file is the first of a split model, the headers of all its files are joined.
        """
        assert isinstance(source, File)
        with naming(source):
            found = read_one(source, name)
            parts = _parts(found)
            if parts <= 1:
                return _header(found, name)
            names = _names(found, parts)
        return _joined(read_one(source, source.name), names)


def _header(found: GgufHeader, name: str) -> Header:
    entry = found.stored.get(RECIPE_KEY)
    recipe = _recipe(found.file, entry) if entry is not None else None
    return Header(
        format=FORMAT.name,
        tree=dict(found.tensors),
        files=(FilePrint.of(found.file, found.sha256, name),),
        handles={name: found.file},
        metadata=_without_own(found.metadata),
        recipe=recipe,
        frame=lambda: _frame(found.file, found.tensors, entry, recipe or ""),
        stored=_without_own(found.stored),
    )


def _without_own(entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return the metadata entries without ckpt's recipe and without the entries that say how a model is split."""
    return {key: one for key, one in entries.items() if key not in RESERVED}


def _recipe(file: File, entry: StoredEntry) -> str:
    if entry.kind != TEXT:
        raise FormatError(f"the entry {RECIPE_KEY} is not a string, as a recipe must be.", rule="recipe size")
    if entry.nbytes > limits.RECIPE_BYTES:
        raise FormatError(
            f"the entry {RECIPE_KEY} has {entry.nbytes:,} bytes; a recipe has at most {limits.RECIPE_BYTES:,}.",
            rule="recipe size",
        )
    return file.read(entry.offset + 8, entry.nbytes - 8).decode("utf-8", "replace")


# A model in several files, as llama-gguf-split writes it: each has some of the tensors; the first has the metadata.


def _parts(found: GgufHeader) -> int:
    """Return the number of files of a split model; ``found`` is the header of one of them.

    Raises FormatError if there are too many.
    """
    said = found.metadata.get(SPLIT_COUNT, "1")
    number = 1 if (stated := number_in(said)) is None else stated
    if number > limits.SHARDS:
        raise FormatError(
            f"the model is split into {number} files, more than the limit of {limits.SHARDS}.", rule="split"
        )
    return number


def _names(found: GgufHeader, parts: int) -> list[str]:
    """Return the names of the ``parts`` files of a split model.

    ``found`` is the header of the file that was opened. Raises FormatError if this is not the first of these files.
    """
    ending = f"-00001-of-{parts:05d}.gguf"
    number = found.metadata.get(SPLIT_NUMBER)
    why = (
        f"its name does not end with {ending}, as the name of the first file does"
        if not found.file.name.endswith(ending)
        else f"it has no entry {SPLIT_NUMBER}, which is 0 in the first file"
        if number is None
        else f"its entry {SPLIT_NUMBER} is {escape(number, 20)}, but 0 in the first file"
        if number != "0"
        else ""
    )
    if number == "0" and why:
        raise FormatError(
            f"the file is the first of {parts} files of a split model, but {why.partition(', ')[0]}.",
            hint=f"Rename the file so that its name ends with {ending}, and put the other files next to it.",
            rule="split",
        )
    if why:
        raise FormatError(
            f"the file is one of {parts} files of a split model, but not the first: {why}.",
            hint=f"Pass the first file, whose name ends with {ending}."
            if not found.file.name.endswith(ending)
            else "Fetch the files of the model again: this one has the name of the first, but not its content.",
            rule="split",
        )
    stem = found.file.name.removesuffix(ending)
    return [f"{stem}-{number:05d}-of-{parts:05d}.gguf" for number in range(1, parts + 1)]


def _joined(first: GgufHeader, names: Sequence[str]) -> Header:
    """Return one header for all files of a split model; raises FormatError if the files do not fit together.

    ``first`` is the header of the first file, ``names`` are the names of all files.
    """
    with ExitStack() as stack:
        parts = [first, *(_part(first.file, name, number, stack) for number, name in enumerate(names[1:], 1))]
        tree: dict[str, TensorInfo] = {}
        for one in parts:
            twice = next((key for key in one.tensors if key in tree), None)
            if twice is not None:
                raise FormatError(
                    f"{escape(one.file.uri)} has the tensor {escape(twice)}, which an earlier file has, too.",
                    rule="duplicate key",
                )
            tree.update(one.tensors)
        said = first.metadata.get(SPLIT_TENSORS, str(len(tree)))
        if said != str(len(tree)):
            raise FormatError(
                f"{escape(first.file.uri)} says that the model has {escape(said, 20)} tensors, but the files have "
                f"{len(tree)}.",
                rule="split",
            )
        stack.pop_all()
    header = _header(first, names[0])
    return replace(
        header,
        tree=tree,
        notes=(*header.notes, *_other_metadata(first, parts[1:])),
        files=tuple(FilePrint.of(one.file, one.sha256, name) for name, one in zip(names, parts, strict=True)),
        handles={name: one.file for name, one in zip(names, parts, strict=True)},
        frame=lambda: hashlib.sha256(
            "".join(_frame(one.file, one.tensors, None, "") for one in parts).encode()
        ).hexdigest(),
    )


def _other_metadata(first: GgufHeader, others: Sequence[GgufHeader]) -> Iterator[Note]:
    """Yield a note if the metadata of a later file has entries that the first file lacks, or has with other values."""
    keys = {
        key: None
        for one in others
        for key, value in _without_own(one.metadata).items()
        if first.metadata.get(key) != value
    }
    if keys:
        said = f"the metadata of later files of the split model is not used: {listing([*keys], 4, where='')}"
        yield Note(NoteKind.METADATA, f"{said} (the first file lacks these entries, or has other values)")


def _part(first: File, name: str, number: int, stack: ExitStack) -> GgufHeader:
    """Return the header of the file with the index ``number`` of a split model, in the folder of its ``first`` file.

    The function that closes the file is added to ``stack``. Raises FormatError if the file cannot be read, or does not
    have this index.
    """
    try:
        file = first.folder().file(name)
    except SourceError as error:
        raise FormatError(
            f"{escape(first.uri)} is the first file of a split model, but the file {escape(name)} cannot be read: "
            f"{error.message}",
            hint="Fetch all files of the model.",
            rule="missing shard",
        ) from error
    stack.callback(file.close)
    with naming(file):
        found = read_one(file, name)
        if found.metadata.get(SPLIT_NUMBER) != str(number):
            stored = escape(str(found.metadata.get(SPLIT_NUMBER, "missing")))
            raise FormatError(
                f"the name says that this is file {number}, counted from 0, but the entry {SPLIT_NUMBER} is {stored}.",
                rule="split",
            )
    return found


def _frame(file: File, tensors: Mapping[str, TensorInfo], entry: StoredEntry | None, recipe: str) -> str:
    places = sorted((info.offset, info.nbytes) for info in tensors.values())
    start = next((info.storage.offset for info in tensors.values() if info.storage is not None), 0)
    payload = [(start + offset, start + offset + nbytes) for offset, nbytes in places if nbytes]
    patches = []
    if entry is not None and (sealed := seal_of(recipe).encode()):
        raw = file.read(entry.offset + 8, entry.nbytes - 8)
        patches = [(entry.offset + 8 + raw.rfind(sealed), UNSEALED.encode())]
    return digest_outside(file, payload, patches)


FORMAT = _Gguf()
