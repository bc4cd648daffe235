"""Makes notes on a shard that was opened alone, and on shards that the recipe in their folder does not describe."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..formats.base.format_table import RANK_INDEX, indexed_name, shard_name, tensor_rank
from ..formats.base.sharded_writer import RECIPE_FILE
from ..storage.read.base import File, Folder
from ..storage.read.local import ConsumedFile, LocalFolder, is_local
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note, notes_of
from ..util.text import count, escape, listing, together
from .quantisation import document_of

__all__ = [
    "ShardIndex",
    "consumed_notes",
    "damaged_recipe_notes",
    "lone_rank_notes",
    "lone_shard_note",
    "other_shard_notes",
    "shard_index",
    "shard_notes",
]

SHOWN = 2
LENGTH = 8
"""A safetensors file begins with the length of its header: a number with this many bytes."""


@dataclass(frozen=True)
class ShardIndex:
    """What the index ``name`` says about one shard and about the model's other shards.

    ``here`` has the keys of the shard, ``elsewhere`` the keys of all other shards, ``shards`` the names of all shards.
    ``total`` is the ``total_size`` in bytes, or None if the index has none.
    """

    name: str = ""
    here: frozenset[str] = frozenset()
    elsewhere: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    total: int | None = None


def lone_shard_note(shard: str, number: int) -> Note:
    """Return the note on a shard that was opened without the other shards; ``number`` is the number of all shards."""
    said = f"{escape(shard)} is one of {number} shards: the tensors of the other shards are not read"
    return Note(NoteKind.PART_OF_MODEL, said)


def lone_rank_notes(name: str, folder: Folder | None) -> Iterator[Note]:
    """Yield a note if the file ``name`` in ``folder`` has the tensors of only one of several ranks.

    ``ranks.json`` in the folder has the number of ranks. Without it, the names of the files show how many ranks there
    are at least.
    """
    rank = tensor_rank(name)
    if rank is None:
        return
    index, last = None, rank
    with suppress(CheckpointError):
        names = folder.names() if folder is not None else ()
        last = max([rank, *(one for other in names if (one := tensor_rank(other)) is not None)])
        index = document_of(folder, RANK_INDEX) if folder is not None and RANK_INDEX in names else None
    stated, axes = (index.get("ranks"), index.get("axes")) if isinstance(index, dict) else (None, None)
    give = f"give the folder with {RANK_INDEX} and the files of all ranks"
    if type(stated) is int:
        if stated > 1 and axes != {}:
            said = f"{escape(name)} has the parts of one of {stated} ranks of tensor parallelism: {give}"
            yield Note(NoteKind.SINGLE_RANK, said)
    elif last > 0:
        said = f"{escape(name)} has the parts of one of at least {last + 1} ranks of tensor parallelism: {give}"
        yield Note(NoteKind.SINGLE_RANK, said)
    else:
        said = f"{escape(name)} is named as the file of one rank of tensor parallelism: if there are others, {give}"
        yield Note(NoteKind.PART_OF_MODEL, said)


def shard_index(shard: str, folder: Folder | None) -> ShardIndex:
    """Return the entries of an index in ``folder`` for a shard; an empty ShardIndex if no index lists the shard."""
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


def shard_notes(shard: str, keys: Collection[str], index: ShardIndex, folder: Folder | None) -> Iterator[Note]:
    """Yield a note if ``keys``, the keys of a shard, differ from the keys that the index lists for this shard.

    If they are equal, the sizes of all shards in a local folder are added. There is a note if this sum is not the
    ``total_size`` in the index.
    """
    if not index.name:
        return
    more, fewer = sorted(set(keys) - index.here), sorted(index.here - set(keys))
    has = f"has {together(more, SHOWN)}, which the index does not list for it" if more else ""
    lacks = f"lacks {together(fewer, SHOWN)}" if fewer else ""
    if has or lacks:
        said = " and ".join(filter(None, (has, lacks)))
        yield Note(
            NoteKind.OTHER_SHARD, f"{escape(shard)} is not the shard that {escape(index.name)} describes: it {said}"
        )
        return
    size = _size(index, folder)
    if size is not None and index.total is not None and size != index.total:
        says = f"{escape(index.name)} gives a total_size of {index.total:,} bytes"[:120]
        yield Note(
            NoteKind.INDEX_TOTAL,
            f"{says}, but the shards in its folder have {size:,}: a shard may be truncated, or from another model",
        )


def _size(index: ShardIndex, folder: Folder | None) -> int | None:
    """Return the bytes of all tensors in the shards of a local folder; None if a shard is missing or not safetensors.

    Of each shard, only the length of the header is read.
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


@notes_of(NoteKind.PART_OF_MODEL)
def consumed_notes(files: Iterable[File]) -> tuple[str, ...]:
    """Return a note if an interrupted run has deleted the shards that it had read, and only their headers are left."""
    found = [file for file in files if isinstance(file, ConsumedFile)]
    if not found:
        return ()
    header = "header" if len(found) == 1 else "headers"
    gone = f"only the {header} of {count(len(found), 'shard')} {'is' if len(found) == 1 else 'are'} left"
    output = escape(found[0].shard.output)
    return (f"{gone}: a run that writes {output} consumed the rest and was interrupted; run the same command again",)


LARGEST = 1 << 18
"""The largest size, in bytes, of a tensor whose checksum is compared with the recipe."""


@notes_of(NoteKind.REMARK)
def damaged_recipe_notes(recipe: str, path: str) -> Iterator[str]:
    """Yield a note on a recipe that is cut short. ``ckpt check`` and ``ckpt verify`` also find other damage."""
    if not recipe.rstrip().endswith("}"):
        yield (
            f"the recipe of {escape(path)} is damaged: the weights and the token list are not compared with the recipe"
        )


@notes_of(NoteKind.OTHER_OUTPUT)
def other_shard_notes(recipe: str, tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note if only some shards fit the recipe in their folder, so that the others belong to another output.

    A shard of another output may have the same keys and shapes, and so an equal header. So two tensors of each shard
    are read: its smallest one, and its largest one of at most ``LARGEST`` bytes. ``tensors`` are the tensors by their
    keys in the files, ``handles`` maps each ``Storage.file`` to the open file.
    """
    shards = _samples(tensors, handles)
    sums = _checksums(recipe, [key for keys in shards.values() for key in keys]) if len(shards) > 1 else {}
    wrong = {
        name: [key for key in keys if _differs(handles[name], tensors[key], sums[key])]
        for name, keys in (shards.items() if sums else ())
    }
    strange = [handles[name].name for name, keys in wrong.items() if keys]
    others = len(wrong) - len(strange)
    if strange and others:
        are = "is" if len(strange) == 1 else "are"
        those = "the other shard" if others == 1 else f"the other {others} shards"
        keys = [key for each in wrong.values() for key in each]
        have = "has another checksum" if len(keys) == 1 else "have other checksums"
        named = listing(strange, 2, where="")
        yield f"{named} {are} not from the same output as {those}: {together(keys, 2)} {have} in {RECIPE_FILE}"


def _samples(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> dict[str, list[str]]:
    """Return {local file: [keys of its smallest and largest tensor]}; skips tensors over ``LARGEST`` bytes."""
    small: dict[str, list[str]] = defaultdict(list)
    for key, info in tensors.items():
        if info.storage is not None and info.is_plain and not info.opaque and 0 < info.nbytes <= LARGEST:
            small[info.storage.file].append(key)
    found = {}
    for name, keys in small.items():
        file = handles.get(name)
        if is_local(file):
            ordered = sorted(keys, key=lambda key: tensors[key].nbytes)
            found[name] = list(dict.fromkeys((ordered[0], ordered[-1])))
    return found


def _checksums(recipe: str, keys: Sequence[str]) -> dict[str, int]:
    """Return {key: CRC-32} for ``keys``, as stored in a recipe; {} if the recipe is damaged or lacks one of these keys.

    A recipe that lacks a key describes other weights.
    """
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        rows = json.loads(recipe)["tensors"]
        return {key: int(rows[key]["crc32"], 16) for key in keys}
    return {}


def _differs(file: File, info: TensorInfo, checksum: int) -> bool:
    """Return whether the CRC-32 of a tensor's bytes differs from ``checksum``; False if the bytes cannot be read."""
    assert info.storage is not None
    with suppress(CheckpointError):
        return zlib.crc32(file.read(info.storage.offset + info.offset, info.nbytes)) != checksum
    return False
