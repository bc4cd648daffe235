"""A folder of TensorFlow checkpoints: which one is meant, and the texts that Coqui STT leaves beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import FormatError, SourceError
from ...storage.read.base import File, Folder
from ...util.text import escape, listing
from .._choosing import is_weights
from ..base import limits
from ..base.json import parse_json

__all__ = ["STATES", "beside", "chosen", "is_folder"]

STATES = ("best_dev_checkpoint", "checkpoint")
"""Texts that name a checkpoint, the best of Coqui STT's first, as its training loads them."""
_NAMED = re.compile(rb'^\s*model_checkpoint_path:\s*"((?:[^"\\\n]|\\.)*)"', re.M)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.S)
_DATA = re.compile(r"\.data-\d{5,}-of-\d{5,}$")
_INDEX = ".index"
_FLAGS, _ALPHABET = "flags.txt", "alphabet.txt"


def is_folder(folder: Folder) -> bool:
    """Whether a folder holds checkpoints of TensorFlow: a text that names one, or an index with its data alone."""
    names = folder.names()
    if _prefixes(names) and not any(map(is_weights, names)):
        return True
    return any(name in names and _named(folder, name) is not None for name in STATES)


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return what checkpoints there are by their names, in order."""
    data = {_DATA.sub("", name) for name in names if _DATA.search(name)}
    return [name.removesuffix(_INDEX) for name in names if name.endswith(_INDEX) and name.removesuffix(_INDEX) in data]


def chosen(folder: Folder) -> tuple[str, str]:
    """Return the checkpoint that a folder says is its best, else its last, and a note that says so.

    Paths in the text are of the machine that trained; only the last part counts. Raises FormatError where no text
    names one, or the one that is named is not there.
    """
    names = folder.names()
    prefixes = _prefixes(names)
    for state in STATES:
        named = _named(folder, state) if state in names else None
        if named is None:
            continue
        if named + _INDEX not in names:
            raise FormatError(
                f"{escape(folder.uri)}: {state} names {escape(named)}, and there is no {escape(named + _INDEX)}.",
                hint=_which(folder, prefixes),
                rule="missing index",
            )
        others = [prefix for prefix in prefixes if prefix != named]
        also = f"; also in the folder: {listing(others, where='')}" if others else ""
        return named, f"read {escape(named)}, as {state} says{also}"
    raise FormatError(
        f"{escape(folder.uri)} has neither {STATES[0]} nor {STATES[1]}, which say which checkpoint counts.",
        hint=_which(folder, prefixes),
        rule="no checkpoint",
    )


def _which(folder: Folder, prefixes: Sequence[str]) -> str:
    return f"Name the one you mean: {listing([f'{folder.uri}/{prefix}' for prefix in prefixes])}." if prefixes else ""


def _named(folder: Folder, state: str) -> str | None:
    """Return the name in a text, without the folders in front; None where it is no such text."""
    found = _NAMED.search(_small(folder, state) or b"")
    if found is None:
        return None
    path = _ESCAPE.sub(_unescaped, found[1]).decode("utf-8", "replace")
    return re.split(r"[/\\]", path)[-1] or None


def _unescaped(found: re.Match[bytes]) -> bytes:
    text = found[1]
    return bytes([int(text, 8) & 0xFF]) if text[:1].isdigit() else text


def _small(folder: Folder, name: str) -> bytes | None:
    """Return a small file of a folder, None where it cannot be read or is large."""
    try:
        file = folder.file(name)
        try:
            return file.read(0, file.size) if file.size <= limits.BESIDE_BYTES else None
        finally:
            file.close()
    except SourceError:
        return None


def beside(file: File) -> Iterator[tuple[str, Any]]:
    """Yield what Coqui STT's training leaves beside a checkpoint, as far as it can be read: flags and alphabet."""
    folder = file.folder()
    try:
        names = folder.names()
    except SourceError:
        return
    for name in (_FLAGS, _ALPHABET):
        raw = _small(folder, name) if name in names else None
        if raw is None:
            continue
        try:
            yield name, parse_json(raw) if name == _FLAGS else raw.decode("utf-8")
        except ValueError:
            yield name, f"{len(raw)} bytes that are not what the name says"
