"""Finds the shards that a scanned folder lacks, by the names in an index, or by the names of other shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import TypeAlias

from ...errors import CheckpointError
from ...formats.base import limits
from ...formats.base.format_table import indexed_name, is_weights, missing_shards, shards_among
from ...storage.read.base import File
from ...util.text import count, listing
from ..check.shards import index_facts

__all__ = ["missing_notes"]

Open: TypeAlias = Callable[[], File]
"""A function that opens a file."""
SHOWN = 1000
"""The largest number of names of missing shards that are derived from the names of other shards."""


def missing_notes(found: Mapping[str, Open]) -> Iterator[str]:
    """Yield a note for each folder that lacks shards of a checkpoint: these shards were not scanned.

    ``found`` maps the path of each scanned file to a function that opens it.
    """
    folders: dict[str, dict[str, Open]] = {}
    for path, opening in found.items():
        folder, name = os.path.split(path)
        folders.setdefault(folder, {})[name] = opening
    whole = {os.path.normpath(path) for path in found}
    for folder, files in folders.items():
        named, number = missing_shards(shards_among(list(files)), SHOWN)
        indexed = {shard for name, one in files.items() if indexed_name(name) for shard in _of_index(name, one)}
        paths = {shard: os.path.normpath(os.path.join(folder, shard)) for shard in indexed}
        lost = {shard for shard, path in paths.items() if path not in whole} - set(named)
        is_used = len(lost) < len(indexed) or not any(is_weights(name) for name in files)
        more = sorted(lost) if is_used else []  # an index without any of its shards is left over from other weights
        names = [os.path.join(folder, name) for name in (*named, *more)]
        if names:
            many = number + len(more)
            are = "is missing, so it was" if many == 1 else "are missing, so they were"
            yield f"{count(many, 'shard')} {are} not scanned: {listing(names, 3, where='')}"


def _of_index(name: str, opening: Open) -> frozenset[str]:
    """Return the names of the shards that an index lists; none if it cannot be read, which another finding reports."""
    with suppress(CheckpointError), closing(opening()) as file:
        facts = index_facts(name, file.read(0, file.size)) if file.size <= limits.INDEX_BYTES else None
        return frozenset(facts.places.values()) if facts is not None else frozenset()
    return frozenset()
