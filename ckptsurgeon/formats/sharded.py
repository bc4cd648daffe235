"""Reads sharded checkpoints: an index, ``{"metadata": …, "weight_map": {key: file}}``, and the files that it lists.

This is the convention of transformers and huggingface_hub (``model.safetensors.index.json``,
``pytorch_model.bin.index.json``).
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from typing import Any

from ..errors import CheckpointError, FormatError, SourceError
from ..storage.read.base import File, Folder, Source
from ..storage.read.uri import leads_out
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing
from ._open import read_header
from .base import limits
from .base.format_table import indexed_name, missing_shards, numbered, shard_name
from .base.header import FilePrint, Header
from .base.sharded_writer import folder_frame, folder_recipe
from .base.untrusted import parse_json, unique_keys
from .unsupported.text import json_kind, not_a_checkpoint

__all__ = ["FORMAT"]

_COUNTED_SHARDS = 10_000
"""The most missing shards that are looked for in the folder."""
_LISTED_FOLDERS = 16
"""If the shards are in more folders, only that of a missing shard is listed: listing each may be a request."""


class _Sharded:
    name = "sharded"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a file begins like a JSON object and its name ends in ``.json``."""
        return isinstance(source, File) and source.name.endswith(".json") and head.lstrip()[:1] == b"{"

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the index and the header of every shard; raises FormatError if they disagree."""
        assert isinstance(source, File)
        raw, weight_map, metadata, total = _index(source)
        linked: tuple[str, ...] = ()
        if metadata and leads_out(source.uri):
            linked, metadata = (
                (f"{escape(source.name)} is a link to a file outside its folder: its metadata is not copied",),
                {},
            )
        folder = source.folder()
        tree: dict[str, Any] = {}
        files = [FilePrint.of(source, hashlib.sha256(raw).hexdigest(), source.name)]
        handles: dict[str, File] = {source.name: source}
        shards: dict[str, Header] = {}
        by_shard = _by_shard(weight_map)
        with ExitStack() as opened:
            for shard, wanted in by_shard.items():
                header = _shard(source, folder, shard, by_shard, opened)
                _check_keys(source, shard, wanted, header.tree)
                shards[shard] = header
                tree.update(header.tree)
                files.extend(header.files)
                handles.update(header.handles)
            kinds = sorted({header.format for header in shards.values()})
            unlike: dict[str, None] = {}
            for header in shards.values():
                unlike |= dict.fromkeys(key for key, text in header.metadata.items() if metadata.get(key, text) != text)
                metadata.update(header.metadata)
            whole = Header(
                format=f"sharded {' and '.join(kinds) or 'and empty'}",
                tree={key: tree[key] for key in weight_map},
                files=tuple(files),
                handles=handles,
                metadata=metadata,
                recipe=folder_recipe(folder),
                notes=(
                    *linked,
                    *_sent_whole(source, [handles[shard] for shard in shards]),
                    *_unlike_metadata(source, [*unlike]),
                    *_unnamed(source, folder, shards),
                    *_check_count(source, folder, shards, total),
                    *_other_size(source, shards, total),
                ),
                frame=lambda: _frame(folder, {source.name: hashlib.sha256(raw).hexdigest()}, shards),
            )
            opened.pop_all()
        return whole


def _sent_whole(index: File, shards: Sequence[File]) -> tuple[str, ...]:
    """Return a note if a server sent whole shards; () if not."""
    if not index.remote:
        return ()
    from ..storage.read.remote import notes_of_shards

    return notes_of_shards(index, shards)


def _index(file: File) -> tuple[bytes, dict[str, str], dict[str, str], object]:
    if file.size > limits.INDEX_BYTES:
        raise FormatError(f"{escape(file.uri)} is too large to be an index.", rule="index size")
    raw = file.read(0, file.size)
    try:
        index = parse_json(raw, unique_keys)
    except ValueError as error:
        said = f"{escape(file.uri)} is not valid JSON: {error}."
        raise FormatError(said, hint="Correct this file, or fetch or save it again.", rule="index") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise not_a_checkpoint(file.uri, json_kind(index), "index")
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or len(shard) > limits.KEY_CHARACTERS:
            raise FormatError(f"{escape(file.uri)} has no valid file name for the key {escape(key)}.", rule="index")
    extra = index.get("metadata")
    texts = extra.items() if isinstance(extra, dict) else ()
    total = extra.get("total_size") if isinstance(extra, dict) else None
    names = {shard: shard_name(shard) or shard for shard in set(weight_map.values())}
    weight_map = {key: names[shard] for key, shard in weight_map.items()}
    return raw, weight_map, {str(k): v for k, v in texts if isinstance(v, str)}, total


def _shard(index: File, folder: Folder, shard: str, names: Collection[str], opened: ExitStack) -> Header:
    """Return the header of ``shard``, whose file ``opened`` closes; ``names`` are all shards of the index.

    Raises FormatError if it cannot be read, is a JSON file, or has entries that are not tensors.
    """
    try:
        file = folder.file(shard)
    except SourceError as error:
        raise FormatError(
            f"{escape(index.uri)} lists the shard {escape(shard)}, which {_why(error, folder, shard)}",
            rule="missing shard",
            hint=_advice(error, folder, shard, names),
        ) from error
    opened.callback(file.close)
    if shard.endswith(".json"):
        raise FormatError(f"{escape(index.uri)} lists {escape(shard)} as a shard, but it is a JSON file.", rule="index")
    header = read_header(file, shard)
    if not isinstance(header.tree, Mapping) or not _are_all(header.tree, str, TensorInfo):
        raise FormatError(f"the shard {escape(shard)} has entries that are not tensors.", rule="shard contents")
    return header


def _are_all(tree: Mapping[Any, Any], key: type, value: type) -> bool:
    """Return whether all keys of ``tree`` are of the type ``key``, and all values of the type ``value``.

    Each type that occurs is checked only once, so this is quick.
    """
    return all(issubclass(one, key) for one in set(map(type, tree))) and all(
        issubclass(one, value) for one in set(map(type, tree.values()))
    )


def _why(error: SourceError, folder: Folder, shard: str) -> str:
    """Return the reason in ``error``, which is about a shard: its message without the path of the file in front."""
    return error.message.removeprefix(escape(os.path.join(folder.uri, shard))).strip()


def _advice(error: SourceError, folder: Folder, shard: str, names: Collection[str]) -> str:
    """Return advice for a ``shard`` that cannot be opened; ``names`` are all shards of the index.

    The advice counts the missing shards if they are in few folders (``_LISTED_FOLDERS``).
    """
    there: set[str] = set()
    folders = {os.path.dirname(name) for name in names} | {""}
    are_few = len(folders) <= _LISTED_FOLDERS
    for inner in sorted(folders if are_few else {os.path.dirname(shard), ""}):
        with suppress(CheckpointError):  # not every server lists a folder
            listed = (folder.inside(inner) if inner else folder).names()
            there.update(os.path.join(inner, name) for name in listed)
    missing = [name for name in names if name not in there]
    if not there or shard not in missing:
        return error.hint
    what = "this file" if len(missing) == 1 or not are_few else f"the {len(missing)} missing files"
    return f"Fetch or save {what} again. ckpt check {escape(shlex.quote(folder.uri))} says which tensors are missing."


def _by_shard(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {}
    for key, shard in weight_map.items():
        keys.setdefault(shard, set()).add(key)
    return keys


def _unlike_metadata(index: File, keys: Sequence[str]) -> Iterator[str]:
    """Yield a note if the index and its shards have different values for ``keys``, which are keys of their metadata."""
    if keys:
        yield Note(
            NoteKind.METADATA,
            f"{escape(index.name)} and its shards have different values in their metadata for "
            f"{listing(keys, where='')}: the value of the last shard is used",
        )


def _unnamed(index: File, folder: Folder, shards: Collection[str]) -> Iterator[str]:
    """Yield a note if the folder has files that are named like shards of this index, but are not in the index."""
    stem, suffix = os.path.splitext(indexed_name(index.name))
    own = numbered(stem, suffix, any_case=True)
    others = [name for name in folder.names() if name not in shards and own.fullmatch(name)]
    if others:
        were = "it was" if len(others) == 1 else "they were"
        yield f"{escape(index.name)} does not list {listing(others, 2, where='')}, so {were} not read"


def _check_count(index: File, folder: Folder, shards: Mapping[str, Header], total: object) -> Iterator[str]:
    """Raise FormatError if the names of the shards show that the index lists only some of them ("1 of 3").

    If ``total``, the ``total_size`` of the index, is the size of the listed shards' tensors, the other shards may have
    been left out on purpose. Then a note is yielded, and no error raised.
    """
    missing, many = missing_shards(shards, most=2)
    if not missing:
        return
    size = sum(info.nbytes for header in shards.values() for info in header.tree.values())
    said = f"{escape(index.name)} lists {count(len(shards), 'shard')}, but not {', '.join(map(escape, missing))}"
    said += f" and {many - len(missing):,} more" if many > len(missing) else ""
    if total == size:
        yield Note(NoteKind.UNLISTED_SHARDS, f"{said}, {_places(shards, folder, many)}")
        return
    raise FormatError(
        f"{said}, although the names of the shards imply more: a part of the checkpoint is missing.",
        hint="Fetch the whole checkpoint, or pass the path of a shard to read it alone. If the other shards were left "
        f'out on purpose, write the size of the listed shards into the index: "metadata": {{"total_size": {size}}}.',
        details=missing_shards(shards, most=1000)[0],
        rule="missing shard",
    )


def _places(shards: Collection[str], folder: Folder, many: int) -> str:
    """Return a clause that says how many of the ``many`` missing shards are in the folder of the index.

    Only the first ``_COUNTED_SHARDS`` missing shards are looked for; if more are missing, the clause says "at least".
    """
    there = len(set(missing_shards(shards, most=_COUNTED_SHARDS)[0]) & set(folder.names()))
    which = "which are" if many > 1 else "which is"
    if there == many:
        return f"{which} in its folder, but not read"
    least = "at least " if many > _COUNTED_SHARDS else ""
    if there:
        return f"of which {least}{there:,} {'is' if there == 1 else 'are'} in its folder, but not read"
    if least:
        return f"of which the first {_COUNTED_SHARDS:,} are not in its folder"
    own = "its total_size counts only the listed shards, so the others were perhaps left out on purpose"
    return f"{which} not in its folder either; {own}"


def _other_size(index: File, shards: Mapping[str, Header], total: object) -> Iterator[str]:
    """Yield a note if the size of all tensors is not ``total``, the ``total_size`` of the index.

    In this case, a shard may be from another model. Tied tensors may count once or each time in ``total``.
    """
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    if type(total) is not int:
        return
    infos = [info for header in shards.values() for info in header.tree.values()]
    each = sum(info.nbytes for info in infos)
    if total == each:
        return
    once = sum({info.place: info.nbytes for info in infos if info.place is not None}.values())  # tied tensors once
    if total != once:
        said = f"{total:,}"[:40]
        yield (
            f"{escape(index.name)} gives a total_size of {said} bytes, but its tensors have {each:,}: "
            f"{'tensors may be missing, or ' if total > each else ''}a shard may be from another model"
        )


def _check_keys(index: File, shard: str, wanted: Set[str], tree: Mapping[str, Any]) -> None:
    for keys, how in ((wanted - tree.keys(), "lacks"), (tree.keys() - wanted, "also has")):
        if keys:
            raise FormatError(
                f"{escape(index.uri)} and its shard {escape(shard)} disagree: the shard {how} {listing(sorted(keys))}.",
                hint="Download or save the whole folder again, or pass the path of the shard to read it alone.",
                details=sorted(keys),
                rule="shard keys",
            )


def _frame(folder: Folder, digests: dict[str, str], shards: Mapping[str, Header]) -> str:
    return folder_frame(folder, {**digests, **{name: header.frame() for name, header in shards.items()}})


FORMAT = _Sharded()
