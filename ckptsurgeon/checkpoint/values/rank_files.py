"""Finds checkpoints of several ranks that have the file of only one rank, or copies of one file.

Each rank stores a part of the tensors in its own file, so values are missing in such a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.composition import leaves
from ...tensors.info import Storage, TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count, escape

__all__ = ["MISSING_RANKS", "QUERIES", "doubled_file_notes", "missing_rank_notes"]

TENSORS, FILES, PLACES, BYTES = 64, 256, 16, 512
"""Limits: number of split tensors, of files, of places that are compared in a file, and of bytes at each place."""

Place = tuple[int, int]
"""The place of the bytes of a part in its file: offset and size. In a copy of the file, the places are the same."""


@notes_of(NoteKind.SPLIT_TENSORS)
def doubled_file_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note on each file that has the same parts of split tensors as another file, at the same places.

    Some bytes in the middle of some parts are compared. Bytes that repeat one value prove nothing. A tensor that every
    rank stores whole is not compared, because it is read from one rank only. ``handles`` maps each ``Storage.file`` to
    the open file; remote files are not read.
    """
    found = _parts(tensors)
    shared = [place for place, number in _numbers(found).items() if number > 1]
    places = shared[:: len(shared) // PLACES + 1]
    first: dict[tuple[bytes | None, ...], str] = {}
    for name in list(found)[:FILES]:
        file = handles.get(name)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # commands that read the values report such errors
            some = tuple(_middle(file, found[name][place]) if place in found[name] else None for place in places)
            if not any(some):
                continue
            other = first.setdefault(some, name)
            if other != name:
                yield (
                    f"{escape(name)} has the same bytes as {escape(other)} in all compared parts of tensors that are "
                    "split between them: if it is a copy, the parts of its own rank are missing"
                )


def _parts(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[Place, Storage]]:
    """Return {file: {place: part}} for the parts of some tensors that are split between files."""
    split = [info for info in tensors.values() if info.made is not None]
    found: dict[str, dict[Place, Storage]] = {}
    for info in split[:: len(split) // TENSORS + 1]:
        stored = [storage for leaf in leaves(info) if (storage := leaf.storage) is not None]
        if len({storage.file for storage in stored}) > 1:
            for storage in stored:
                found.setdefault(storage.file, {})[storage.offset, storage.nbytes] = storage
    return found


def _numbers(found: Mapping[str, Mapping[Place, Storage]]) -> dict[Place, int]:
    """Return the number of files with a part at each place; ``found`` is the result of ``_parts``."""
    numbers: dict[Place, int] = {}
    for parts in found.values():
        for place in parts:
            numbers[place] = numbers.get(place, 0) + 1
    return numbers


def _middle(file: File, storage: Storage) -> bytes:
    """Return some bytes in the middle of a part of a tensor; b"" if they repeat one value."""
    size = min(BYTES, storage.nbytes) // 8 * 8
    raw = file.read(storage.offset + (storage.nbytes - size) // 2, size)
    return b"" if raw == raw[:8] * (size // 8) else raw


MISSING_RANKS = "has the weights of one rank of"
WIDTH, QUERIES, OUTPUTS = "norm.weight", "layers.0.attention.wq.weight", "layers.0.attention.wo.weight"
"""Keys in Meta's Llama files: of a norm, which each rank stores whole, and of weights split by rows and by columns."""


@notes_of(NoteKind.SINGLE_RANK)
def missing_rank_notes(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    """Yield a note if query rows and output columns are only 1/n of the model's width, as in the file of one rank of n.

    In each of Meta's models, the heads of all ranks together are as wide as the model.
    """
    shapes = [tensors[key].shape if key in tensors else () for key in (WIDTH, QUERIES, OUTPUTS)]
    if [len(shape) for shape in shapes] != [1, 2, 2] or any(tensors[key].made for key in (WIDTH, QUERIES, OUTPUTS)):
        return
    (width,), (rows, _), (_, columns) = shapes
    ranks = width // rows if rows and width % rows == 0 else 0
    if ranks > 1 and columns * ranks == width:
        yield (
            f"the file {MISSING_RANKS} {ranks}: {QUERIES} has {count(rows, 'row')}, and {WIDTH} {width} values; all "
            f"{ranks} files (consolidated.00.pth and so on) are needed"
        )
