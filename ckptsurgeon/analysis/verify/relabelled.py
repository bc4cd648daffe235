"""Finds tensors that a recipe calls drawn and that are, byte for byte, those of a source."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.plan.receipt import Note
from ...tensors.info import TensorInfo
from ...util.text import escape
from .check import Check
from .differences import BLOCK, reader

__all__ = ["relabelled_notes"]

PROBE = 4096
"""Bytes of each candidate that are read; the others only where these are the same."""

Named = tuple[Checkpoint, str]
Kind = tuple[str, tuple[int, ...]]
"""A dtype and a shape."""


def relabelled_notes(check: Check, keys: Iterable[str]) -> Iterator[Note]:
    """Yield the tensors of ``keys`` that the recipe calls drawn, and that a source on this machine holds.

    Tensors of one value are passed over: every model has zeros and ones. The work grows with the number of tensors, not
    with that of pairs: candidates are found by a digest of their beginning, then by one of their content.
    """
    drawn = [key for key in keys if check.expected.tensors[key].source is None]
    kinds = {_kind(check.output[key]) for key in drawn}
    alike = _by_probe(check.expected.sources.values(), kinds) if kinds else {}
    contents: dict[tuple[Kind, bytes], dict[bytes, Named]] = {}
    for key in drawn if alike else ():
        info = check.output[key]
        found = _kind(info), _probe(check.output, info)
        if found not in alike:
            continue
        content = _content(check.output, info)
        if content is None:
            continue
        if found not in contents:
            contents[found] = _by_content(alike[found])
        if content in contents[found]:
            source, name = contents[found][content]
            yield Note(key, f"is drawn, as the recipe says, and equals {escape(name)} of {escape(source.path)}")


def _kind(info: TensorInfo) -> Kind:
    return info.dtype, info.shape


def _by_probe(sources: Iterable[Checkpoint], kinds: set[Kind]) -> dict[tuple[Kind, bytes], list[Named]]:
    """Return the tensors of some kinds by how they begin; of sources far away none, since that would fetch them."""
    found: dict[tuple[Kind, bytes], list[Named]] = {}
    for source in sources:
        if any(file.remote for file in source.open_files().values()):
            continue
        for key, info in source.items():
            if _kind(info) in kinds:
                found.setdefault((_kind(info), _probe(source, info)), []).append((source, key))
    return found


def _by_content(candidates: Sequence[Named]) -> dict[bytes, Named]:
    found: dict[bytes, Named] = {}
    for source, key in candidates:
        content = _content(source, source[key])
        if content is not None:
            found.setdefault(content, (source, key))
    return found


def _probe(source: Checkpoint, info: TensorInfo) -> bytes:
    """Return a digest of a tensor's beginning; empty where it cannot be read, which is said where it is needed."""
    if not info.opaque:
        with suppress(CheckpointError):
            data = reader(source, info)(0, min(PROBE, info.nbytes))
            return hashlib.blake2b(data, digest_size=16).digest()
    return b""


def _content(source: Checkpoint, info: TensorInfo) -> bytes | None:
    """Return a digest of a tensor's values; None where they are all the same one, or cannot be read."""
    if info.opaque:
        return None
    digest, first, single = hashlib.sha256(), b"", True
    with suppress(CheckpointError):
        read = reader(source, info)
        for begin in range(0, info.nbytes, BLOCK):
            data = bytes(read(begin, min(BLOCK, info.nbytes - begin)))
            first = first or data[: info.itemsize]
            single = single and data == first * (len(data) // len(first))
            digest.update(data)
        return None if single else digest.digest()
    return None
