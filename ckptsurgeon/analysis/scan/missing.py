"""Finds the shards that a scanned folder lacks: their names are in an index, or follow from those of other shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress

from ...errors import CheckpointError
from ...formats.base import limits
from ...formats.base.sharded_writer import indexed_name, missing_shards, shards_among
from ...storage.read.base import File
from ...util.text import count, listing
from ..check.shards import index_facts

__all__ = ["missing_notes"]

SHOWN = 1000
"""How many names of missing shards are made, at most, from names of other shards."""


Opener = Callable[[], File]


def missing_notes(listed: Mapping[str, Opener]) -> Iterator[str]:
    """Yield a note for each folder that lacks shards of a checkpoint: what they contain was not scanned.

    ``listed`` maps the path of each scanned file to a function that opens it.
    """
    folders: dict[str, dict[str, Opener]] = {}
    for path, opener in listed.items():
        folder, name = os.path.split(path)
        folders.setdefault(folder, {})[name] = opener
    for folder, files in folders.items():
        named, number = missing_shards(shards_among(list(files)), SHOWN)
        indexed = {shard for name, one in files.items() if indexed_name(name) for shard in _of_index(name, one)}
        more = sorted(indexed - files.keys() - set(named))
        names = [os.path.join(folder, name) for name in (*named, *more)]
        if names:
            many = number + len(more)
            are = "is missing, so it was" if many == 1 else "are missing, so they were"
            yield f"{count(many, 'shard')} {are} not scanned: {listing(names, 3, where='')}"


def _of_index(name: str, opener: Opener) -> frozenset[str]:
    """Return the names of the shards in an index; none if it cannot be read, which is a finding of its own."""
    with suppress(CheckpointError), closing(opener()) as file:
        facts = index_facts(name, file.read(0, file.size)) if file.size <= limits.INDEX_BYTES else None
        return frozenset(facts.places.values()) if facts is not None else frozenset()
    return frozenset()
