"""Reads headers of safetensors files that may be damaged, and an index that may contradict them: facts, no errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

from ...errors import CheckpointError
from ...formats._safetensors_writer import CODES
from ...formats.base import limits
from ...formats.base.sharded_writer import shard_name
from ...formats.base.untrusted import parse_json, unique_keys
from ...storage.read.base import File, Folder
from ...storage.stand_ins import HEAD_BYTES, stand_in
from ...tensors.dtypes import DTYPES
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
    unsound = {key: why for key, one in entries.items() if (why := _fault(one))}
    found = {key: one for key, one in entries.items() if key not in unsound}
    ends = [one["data_offsets"][1] for one in found.values()]
    whole = {key: one for key, one in found.items() if start + one["data_offsets"][1] <= size}
    places = sorted((*one["data_offsets"], key) for key, one in found.items())
    return ShardFacts(
        name,
        size,
        start + max(ends, default=0),
        tensors={key: _info(one, stored) for key, one in whole.items()},
        cut=tuple(key for key in found if key not in whole),
        overlaps=tuple(_overlaps(places)),
        holes=tuple(_holes(places)),
        unsound=unsound,
    )


def _fault(entry: Any) -> str:
    """Return what is wrong with the entry of a tensor in a header, '' if nothing is."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        return "it lacks fields"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in CODES:
        return f"its dtype {escape(str(dtype), 40)} is not known"
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        return "its shape or its offsets are not valid"
    if prod(size for size in shape if size) > limits.ELEMENTS:
        return "its shape has too many elements"
    bits = prod(shape) * (4 if dtype == "F4" else DTYPES[CODES[dtype]].bits)
    if offsets[1] - offsets[0] != bits // 8 or bits % 8:
        return f"its shape needs {bits // 8:,} bytes, its offsets span {offsets[1] - offsets[0]:,}"
    return ""


def _are_sizes(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > limits.DIMENSIONS:  # a product of many sizes takes minutes
        return False
    return all(type(one) is int and 0 <= one <= limits.ELEMENTS for one in values)


def _info(entry: Mapping[str, Any], stored: Storage) -> TensorInfo:
    shape = entry["shape"]
    if entry["dtype"] == "F4" and shape:
        shape = [*shape[:-1], shape[-1] // 2]
    return TensorInfo(CODES[entry["dtype"]], tuple(shape), stored, entry["data_offsets"][0])


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
