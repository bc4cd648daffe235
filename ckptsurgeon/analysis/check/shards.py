"""Reads headers of safetensors files that may be damaged, and an index that may contradict them: facts, no errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ...errors import CheckpointError
from ...formats._safetensors_entry import EntryError, tensor_of
from ...formats.base import limits
from ...formats.base.sharded_writer import shard_name
from ...formats.base.untrusted import parse_json, unique_keys
from ...storage.read.base import File, Folder
from ...storage.stand_ins import HEAD_BYTES, stand_in
from ...tensors.info import Storage, TensorInfo
from ...util.text import escape

__all__ = ["IndexFacts", "ShardFacts", "index_facts", "read_shard"]

LENGTH = 8
"""The bytes before the header, which are its length."""
RECIPE = "__metadata__"


@dataclass(frozen=True)
class ShardFacts:
    """What is in a safetensors file, sound or not.

    ``size`` is its size, ``needed`` the size that its header implies (None if the header cannot be read: then ``fault``
    says why). ``tensors`` are those that the file has whole, ``cut`` the keys of the others. ``overlaps`` and ``holes``
    are in words; ``unsound`` maps keys to what is wrong with their entry in the header.
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
        """The keys in its header."""
        return frozenset((*self.tensors, *self.cut, *self.unsound))


@dataclass(frozen=True)
class IndexFacts:
    """What an index says: the shard of each key, and the ``total_size``, None if it gives none.

    ``has_bad_total`` says whether that is a number, but not a size. ``shards`` are all files that it names, and
    ``others`` those beside it that are named like shards.
    """

    name: str
    places: Mapping[str, str] = field(default_factory=dict)
    total: int | None = None
    others: tuple[str, ...] = ()
    has_bad_total: bool = False

    @property
    def shards(self) -> tuple[str, ...]:
        """The files that it names, in their first order."""
        return tuple(dict.fromkeys(self.places.values()))


def index_facts(name: str, text: bytes) -> IndexFacts | None:
    """Return what an index says; None if it is not one."""
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
    """Return a number of an index if it is whole and an int64 holds it; else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) <= limits.ELEMENTS else None


def read_shard(folder: Folder, name: str) -> tuple[ShardFacts, File | None]:
    """Return the facts of a file in a folder, and the open file; the file is None if it cannot be opened."""
    try:
        file = folder.file(name)
    except CheckpointError as error:
        return ShardFacts(name, fault=error.message, is_missing=True), None
    try:
        return _facts(file, name), file
    except CheckpointError as error:
        return ShardFacts(name, file.size, fault=error.message), file


def _facts(file: File, name: str) -> ShardFacts:
    if file.size < LENGTH:
        return ShardFacts(name, file.size, LENGTH, f"it has only {file.size} bytes")
    if why := stand_in(bytes(file.read(0, min(file.size, HEAD_BYTES)))):
        return ShardFacts(name, file.size, fault=why)
    length = int.from_bytes(file.read(0, LENGTH), "little")
    if length > limits.JSON_HEADER_BYTES:
        return ShardFacts(name, file.size, fault=f"its header claims {length:,} bytes")
    start = LENGTH + length
    if start > file.size:
        return ShardFacts(name, file.size, start, "its header is cut short")
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
