"""Reads the headers of safetensors files, and an index; records faults in them instead of raising errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ...errors import CheckpointError
from ...formats._safetensors_entry import EntryError, tensor_of
from ...formats.base import limits
from ...formats.base.format_table import shard_name
from ...formats.base.untrusted import parse_json, unique_keys
from ...formats.unsupported.text import text_kind
from ...storage.read.base import File, Folder
from ...storage.small_files import HEAD_BYTES, stand_in
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape

__all__ = ["IndexFacts", "ShardFacts", "index_facts", "read_shard"]

LENGTH = 8
"""The size in bytes of the field before the header, which contains the length of the header."""
RECIPE = "__metadata__"


@dataclass(frozen=True)
class ShardFacts:
    """The facts of a safetensors file, which may be damaged.

    ``size`` is its size in bytes, ``needed`` the size that its header implies. If the header cannot be read, ``fault``
    is the reason, and ``needed`` may be None. ``tensors`` are the tensors whose bytes are complete, ``cut`` the keys of
    the truncated tensors. ``overlaps`` are messages on bytes that belong to two tensors, ``holes`` messages on bytes
    that belong to none. ``unsound`` maps keys to the fault of their entry in the header.
    """

    name: str
    size: int = 0
    needed: int | None = None
    fault: str = ""
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    overlaps: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()
    unsound: Mapping[str, str] = field(default_factory=dict)
    is_missing: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all tensors in the header, including truncated tensors and invalid entries."""
        return frozenset((*self.tensors, *self.cut, *self.unsound))


@dataclass(frozen=True)
class IndexFacts:
    """The content of an index: ``places`` maps each key to its shard; ``total`` is the ``total_size``, or None.

    ``has_bad_total`` is true if ``total_size`` is a number, but not a whole number that fits in an int64. ``shards``
    are all files in the index. ``others`` are files in the same folder that are named like shards, but are not in the
    index. ``stale`` maps other indexes in the folder to their shards that do not exist.
    """

    name: str
    places: Mapping[str, str] = field(default_factory=dict)
    total: int | None = None
    others: tuple[str, ...] = ()
    has_bad_total: bool = False
    stale: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def shards(self) -> tuple[str, ...]:
        """The files in the index, in the order of their first occurrence."""
        return tuple(dict.fromkeys(self.places.values()))


def index_facts(name: str, text: bytes) -> IndexFacts | None:
    """Return the facts of an index from its bytes; None if it is not an index. ``name`` is its file name."""
    try:
        document = parse_json(text, unique_keys)
    except ValueError:
        return None
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not all(isinstance(one, str) and one for one in places.values()):
        return None
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    named = {key: shard_name(one) or one for key, one in places.items()}
    size = _whole(total)
    return IndexFacts(name, named, size, has_bad_total=size is None and isinstance(total, (int, float)))


def _whole(value: object) -> int | None:
    """Return ``value`` as an int if it is a whole number that fits in an int64; else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= limits.ELEMENTS else None


def read_shard(folder: Folder, name: str) -> tuple[ShardFacts, File | None]:
    """Return the facts of a file in a folder, and the open file; the file is None if it cannot be opened."""
    try:
        file = folder.file(name)
    except CheckpointError as error:
        return ShardFacts(name, fault=error.message, is_missing=not _is_there(folder, name)), None
    try:
        return _facts(file, name), file
    except CheckpointError as error:
        return ShardFacts(name, file.size, fault=error.message), file


def _is_there(folder: Folder, name: str) -> bool:
    """Return whether a folder has a file ``name``, which perhaps cannot be opened; False if it cannot be listed."""
    with suppress(CheckpointError):
        return name in folder.names()
    return False


def _facts(file: File, name: str) -> ShardFacts:
    if file.size < LENGTH:
        return ShardFacts(name, file.size, LENGTH, f"it has only {file.size} bytes")
    head = bytes(file.read(0, min(file.size, HEAD_BYTES)))
    if why := stand_in(head):
        return ShardFacts(name, file.size, fault=why)
    if text := text_kind(head, file.size):
        return ShardFacts(name, file.size, fault=f"it is {text.what}")
    length = int.from_bytes(file.read(0, LENGTH), "little")
    if length > limits.JSON_HEADER_BYTES:
        why = f"its header would have {length:,} bytes, but at most {limits.JSON_HEADER_BYTES:,} are allowed"
        return ShardFacts(name, file.size, fault=why)
    start = LENGTH + length
    if start > file.size:
        return ShardFacts(name, file.size, start, "its header is truncated")
    try:
        entries = parse_json(file.read(LENGTH, length), unique_keys, strict=True)
    except ValueError as error:
        return ShardFacts(name, file.size, fault=f"its header is not valid JSON: {escape(str(error), 100)}")
    if not isinstance(entries, dict):
        return ShardFacts(name, file.size, fault="its header is not a JSON object")
    return _of_entries(name, file.size, start, {key: one for key, one in entries.items() if key != RECIPE})


def _of_entries(name: str, size: int, start: int, entries: Mapping[str, Any]) -> ShardFacts:
    stored = Storage(name, start, size - start, name=name)
    found: dict[str, TensorInfo] = {}
    unsound: dict[str, str] = {}
    for key, one in entries.items():
        try:
            found[key] = tensor_of(one, stored)
        except EntryError as error:
            unsound[key] = error.why
    places = sorted((*entries[key]["data_offsets"], key) for key in found)
    ends = {key: end for _, end, key in places}
    return ShardFacts(
        name,
        size,
        start + max(ends.values(), default=0),
        tensors={key: info for key, info in found.items() if ends[key] <= stored.nbytes},
        cut=tuple(key for key in found if ends[key] > stored.nbytes),
        overlaps=tuple(_overlaps(places)),
        holes=tuple(_holes(places)),
        unsound=unsound,
    )


def _overlaps(places: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    for (_, end, first), (begin, _, second) in pairwise(places):
        if begin < end:
            yield f"{escape(second)} begins {end - begin:,} bytes before {escape(first)} ends"


def _holes(places: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    at = 0
    for begin, end, key in places:
        if begin > at:
            yield f"{begin - at:,} bytes before {escape(key)} belong to no tensor"
        at = max(at, end)
