"""Compares a shard that is opened alone with the index beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..formats.base.sharded_writer import indexed_name, shard_name
from ..storage.read.base import File, Folder
from ..storage.read.local import ConsumedFile, LocalFolder
from ..util.text import count, escape, together
from .quantisation import document_of

__all__ = ["ShardIndex", "consumed_notes", "shard_index", "shard_notes"]

SHOWN = 2
LENGTH = 8
"""The bytes of a safetensors file before its header, which are the header's length."""


@dataclass(frozen=True)
class ShardIndex:
    """What an index says of one shard, and of the model's other shards.

    ``here`` are the keys of the shard, ``elsewhere`` those of the others, ``shards`` the names of all. ``total`` is the
    ``total_size`` in bytes; None if the index does not give it.
    """

    name: str = ""
    here: frozenset[str] = frozenset()
    elsewhere: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    total: int | None = None


def shard_index(shard: str, folder: Folder | None) -> ShardIndex:
    """Return what an index in ``folder`` says of a shard; an empty ShardIndex if none names it."""
    with suppress(CheckpointError):
        for name in folder.names() if folder is not None else ():
            document = document_of(folder, name) if folder is not None and indexed_name(name) else None
            places = document.get("weight_map") if isinstance(document, dict) else None
            named = {key: shard_name(str(one)) for key, one in places.items()} if isinstance(places, dict) else {}
            if shard in named.values():
                here = frozenset(key for key, place in named.items() if place == shard)
                elsewhere = tuple(key for key in named if key not in here)
                shards = tuple(dict.fromkeys(filter(None, named.values())))
                return ShardIndex(name, here, elsewhere, shards, _total(document))
    return ShardIndex()


def _total(document: Any) -> int | None:
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if type(total) is int else None


def shard_notes(shard: str, keys: Collection[str], index: ShardIndex, folder: Folder | None) -> Iterator[str]:
    """Yield a note if a shard, which has the tensors ``keys``, is not the one that the index describes.

    If it is, yield one if the shards on this machine together have another size than the index gives.
    """
    if not index.name:
        return
    more, fewer = sorted(set(keys) - index.here), sorted(index.here - set(keys))
    has = f"has {together(more, SHOWN)}, which the index does not give to it" if more else ""
    lacks = f"lacks {together(fewer, SHOWN)}" if fewer else ""
    if has or lacks:
        said = " and ".join(filter(None, (has, lacks)))
        yield f"{escape(shard)} is not the shard that {escape(index.name)} describes: it {said}"
        return
    size = _size(index, folder)
    if size is not None and index.total is not None and size != index.total:
        says = f"{escape(index.name)} gives a total_size of {index.total:,} bytes"[:120]
        yield f"{says}, but the shards beside it have {size:,}: a shard may be cut short, or from another model"


def _size(index: ShardIndex, folder: Folder | None) -> int | None:
    """Return the bytes of all tensors in the shards of a local folder; None if a shard is missing or of another kind.

    Only the lengths of the headers are read.
    """
    if not isinstance(folder, LocalFolder) or not all(name.endswith(".safetensors") for name in index.shards):
        return None
    size = 0
    with suppress(CheckpointError):
        for name in index.shards:
            with closing(folder.file(name)) as file:
                size += file.size - LENGTH - int.from_bytes(file.read(0, LENGTH), "little")
        return size
    return None


def consumed_notes(files: Iterable[File]) -> tuple[str, ...]:
    """Return a note if a run has consumed some of the files, so that only their headers can be read."""
    found = [file for file in files if isinstance(file, ConsumedFile)]
    if not found:
        return ()
    gone = f"of {count(len(found), 'shard')} only the header is left"
    output = escape(found[0].shard.output)
    return (f"{gone}: a run that writes {output} has consumed them and was interrupted; run that command again",)
