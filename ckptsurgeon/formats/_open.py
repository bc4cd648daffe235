"""Finds the format of a file or folder by its content and reads its header."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from ..collection import no_collection
from ..errors import FormatError, UnsafeError
from ..registry import discover
from ..sources import File, Folder, Source, broken_links, link_of, notes_of
from ..text import escape, listing
from ._header import Format, Header, Writer
from ._runs import chosen_of_run, example_of_run, lost_of_run
from ._sharded_writer import folder_frame, folder_recipe

__all__ = ["SUFFIXES", "has_weights", "read_header", "writers"]

_HEAD = 512
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_PREFERRED = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


def _formats() -> list[Format]:
    return cast("list[Format]", list(discover("ckptsurgeon.formats", "FORMAT").values()))


def writers() -> dict[str, Writer]:
    """Return what can write, by the name that ``--to`` gives it."""
    found = {fmt.name: getattr(fmt, "writer", None) for fmt in _formats()}
    return {w.name: w for w in found.values() if w is not None}


def read_header(source: Source, name: str = "") -> Header:
    """Read the header of a checkpoint; ``name`` is what its storages call their file.

    Raises FormatError when it is no checkpoint, or a broken one.
    """
    if isinstance(source, File):
        if source.size == 0:
            raise FormatError(f"{escape(source.uri)} is empty.", rule="empty")
        head = source.read(0, min(_HEAD, source.size))
        for fmt in _formats():
            if fmt.sniff(source, head):
                with no_collection():
                    header = _read(fmt, source, name)
                return replace(header, notes=(*_link_note(source), *notes_of(source), *header.notes))
        raise FormatError(f"{escape(source.uri)} is not a checkpoint{_looks_like(head)}.", rule="unknown format")
    for fmt in _formats():
        if fmt.sniff(source, b""):
            _check_alone(fmt, source)
            with no_collection():
                return _read(fmt, source, name)
    return _read_folder(source)


def has_weights(names: Sequence[str]) -> bool:
    """Whether a folder holds weights under a name by which toolkits look for them."""
    return any(name.removesuffix(".index.json") in _PREFERRED for name in names)


def _link_note(file: File) -> tuple[str, ...]:
    """Say where a link leads: a run's best.pth is another epoch tomorrow. Blobs of a cache have no names to say."""
    target = link_of(file)
    if not target.endswith(SUFFIXES):
        return ()
    return (f"{escape(file.name)} is a link to {escape(target)}",)


def _check_alone(fmt: Format, folder: Folder) -> None:
    """Raise FormatError where a folder that is a checkpoint as a whole also holds one in a file."""
    others = [name for name in folder.names() if has_weights([name])]
    if others:
        raise FormatError(
            f"{escape(folder.uri)} is a {fmt.name} checkpoint and holds {listing(others)} too; one of them is stale.",
            hint="Name the file you mean.",
            rule="several checkpoints",
        )


def _read(fmt: Format, source: Source, name: str) -> Header:
    try:
        return fmt.read(source, name)
    except (RecursionError, MemoryError) as error:  # the bounds are meant to come first
        why = "memory" if isinstance(error, MemoryError) else "stack"
        raise UnsafeError(f"{escape(source.uri)} takes more {why} than there is.", rule="resources") from None


def _looks_like(head: bytes) -> str:
    kinds = {
        b"\x89HDF": "HDF5",
        b"GGUF": "GGUF",
        b"version https://git-lfs": "a Git LFS pointer: fetch the file itself",
        b"<!DOCTYPE": "a web page",
        b"<html": "a web page",
        b"\x1f\x8b": "gzip: unpack it first",
        b"BZh": "bzip2: unpack it first",
    }
    for magic, kind in kinds.items():
        if head.startswith(magic):
            return f" (it looks like {kind})"
    if head[:1] == b"\x80" or head[-1:] == b".":
        return " (it looks like a pickle that torch did not write)"
    return ""


def _read_folder(folder: Folder) -> Header:
    """Read the one checkpoint of a folder: its index, or its only file, or the one of a well-known name."""
    names = folder.names()
    name, notes = _choose(folder, names)
    if "latest" in names:
        notes.append("latest names a folder of training states, which were not read: name it to read them")
    header = read_header(folder.file(name), name)
    header = replace(header, notes=(*notes, *header.notes))
    recipe = folder_recipe(folder) if header.recipe is None else None
    if recipe is None:
        return header
    inner = header.frame
    return replace(header, recipe=recipe, frame=lambda: folder_frame(folder, {name: inner()}))


def _check_links(folder: Folder, candidates: Sequence[str]) -> None:
    """Raise SourceError where the checkpoint to take is a link to nothing: the next best is another one."""
    if has_weights(candidates):
        return
    broken = [name for name in broken_links(folder) if name.endswith(SUFFIXES)]
    lost = lost_of_run(candidates, broken) or ("" if candidates else next(iter(broken), ""))
    if lost:
        folder.file(lost).close()  # raises, and names the target


def _choose(folder: Folder, names: Sequence[str]) -> tuple[str, list[str]]:
    indexes = [name for name in names if name.endswith(".index.json")]
    singles = [name for name in names if name.endswith(SUFFIXES) and not _SHARD.search(name)]
    for index in indexes:
        rival = index.removesuffix(".index.json")
        if rival in singles:
            raise FormatError(
                f"{escape(folder.uri)} has both {escape(rival)} and {escape(index)}; one of them is stale.",
                hint="Name the one you mean.",
                rule="stale index",
            )
    candidates = [*indexes, *singles]
    _check_links(folder, candidates)
    if not candidates:
        shards = [name for name in names if _SHARD.search(name)]
        why = f"{len(shards)} shards and no index" if shards else "no checkpoint in it"
        raise FormatError(f"{escape(folder.uri)} has {why}.", rule="no checkpoint")
    if len(candidates) == 1:
        return candidates[0], []
    stems = [n for n in _PREFERRED for n in (f"{n}.index.json", n)]
    for name in stems:
        if name in candidates:
            others = [other for other in candidates if other != name]
            return name, [f"read {name}; also in the folder: {listing(others)}"]
    meant, why = chosen_of_run(candidates)
    if meant:
        others = [other for other in candidates if other != meant]
        return meant, [f"read {meant}, {why}; also in the folder: {listing(others)}"]
    raise FormatError(
        f"{escape(folder.uri)} holds several checkpoints: {listing(candidates)}.",
        hint=f"Name the one you mean, as in {escape(os.path.join(folder.uri, example_of_run(candidates)))}.",
        details=candidates,
        rule="several checkpoints",
    )
