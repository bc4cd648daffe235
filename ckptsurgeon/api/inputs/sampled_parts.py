"""Reads samples of inputs, and makes notes on inputs that are copies of each other, or not related to their base.

Verbs that otherwise read only headers also read these few values.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...planning.transplant.by_place import EMBEDDING, HEAD
from ...storage.read.base import File
from ...storage.read.local import ConsumedFile, LocalFile
from ...storage.read.local import is_local as is_local_file
from ...tensors.dtypes import DTYPES
from ...tensors.info import Decoded, TensorInfo
from ...tensors.odd_scales.notes import OddScales
from ...util.text import escape, percent, together

if TYPE_CHECKING:
    from ...tensors.ops.regions import Array, Box

__all__ = [
    "SAME",
    "SampledFiles",
    "base_notes",
    "is_local",
    "is_sampled",
    "middle",
    "numbers",
    "rows_of_group",
    "spread",
    "twice_notes",
    "unrelated_notes",
]

ROWS, COLUMNS, ALIGNED = 16, 128, 256
"""How many rows and columns in the middle of a matrix are read; the first column is a multiple of ``ALIGNED``.

Of a layer with 4096 inputs in 16 bits, at most 128 kB are read: all stored rows from the first to the last one.
"""
SMALLEST = 64
"""Matrices with fewer rows or columns are not read."""

LARGEST = 256
"""The largest number of rows with a common scale that are decoded together."""


@dataclass
class SampledFiles:
    """The open files of a checkpoint, for reading samples of its tensors.

    Odd scales in the samples are recorded in this object, not in the checkpoint.
    """

    checkpoint: Checkpoint
    odd_scales: OddScales = field(default_factory=OddScales)

    def file(self, info: TensorInfo) -> File:
        """Return the open file that stores a tensor."""
        return self.checkpoint.file(info)


def is_local(checkpoint: Checkpoint) -> bool:
    """Return whether all files of a checkpoint are local and open, and the run does not delete them (``consume``)."""
    return all(map(is_local_file, checkpoint.open_files().values()))


def is_sampled(info: TensorInfo) -> bool:
    """Return whether a tensor is a matrix of real numbers, or a stack of them, that is large enough for a sample."""
    dtype = DTYPES[info.dtype]
    is_large = 2 <= len(info.shape) <= 3 and min(info.shape[-2:]) >= SMALLEST and info.shape[0] > 0
    return is_large and dtype.kind == "float" and not dtype.is_packed and not info.opaque


def rows_of_group(info: TensorInfo) -> int:
    """Return the number of rows of a quantised matrix that share a scale; 1 if above ``LARGEST``, or not known."""
    facts = dict(info.made.facts) if isinstance(info.made, Decoded) else {}
    rows = int(facts.get(f"step{len(info.shape) - 2}", 1))
    return rows if rows <= LARGEST else 1


def spread(keys: Sequence[str], most: int) -> list[str]:
    """Return at most ``most`` keys, evenly spread."""
    number = min(most, len(keys))
    return [keys[at * len(keys) // number] for at in range(number)]


def middle(
    shape: Sequence[int], rows: int = ROWS, columns: int = COLUMNS, *, multiple: int = 1, is_end: bool = False
) -> Box:
    """Return the box, (begin, end) on each axis, in the middle of a matrix; for stacked matrices, of the first matrix.

    The first row is a multiple of ``multiple``. If ``is_end`` is true, the rows are near the end of the matrix.
    """
    *lead, height, width = shape
    row = max(0, height - rows) // (1 if is_end else 2) // multiple * multiple
    column = max(0, width - columns) // 2 // ALIGNED * ALIGNED  # groups of quantised weights begin there
    return (*((0, 1) for _ in lead), (row, min(height, row + rows)), (column, min(width, column + columns)))


def numbers(checkpoint: Checkpoint, key: str, box: Box) -> Array:
    """Return a part of a tensor in double precision; raises CheckpointError if it cannot be read."""
    from ...engine.compute.reading import read_part
    from ...tensors.ops.casts import cast

    info = checkpoint[key]
    found: Array = cast(read_part(SampledFiles(checkpoint), info, box), info.dtype, "float64")[0]
    return found


MATRICES, FEWEST = 8, 3
"""At most ``MATRICES`` matrices are compared; for a note, at least ``FEWEST`` of them must be unrelated."""
DIFFERENCE, COSINE = 0.6, 0.5
"""Two matrices are unrelated if their relative difference is above ``DIFFERENCE`` and their cosine below ``COSINE``.

Fine-tuning changes weights by some per cent; two models that were trained apart have a cosine of about 0.
"""
SAME, WITHOUT_BASE = "the same model as ", 0.2
"""The argument ``called`` and the limit of the cosine if there is no base: models are compared with the first model.

The limit replaces ``COSINE``. It is smaller, because checkpoints of one training may differ much.
"""


def unrelated_notes(base: Checkpoint, models: Iterable[Checkpoint], called: str = "the base ") -> Iterator[str]:
    """Yield a note on each model whose weights are, for the most part, not similar to those of ``base``.

    Parts of at most ``MATRICES`` matrices of each model are read. Files that are remote, or are deleted after use, are
    not read. In the notes, the words ``called`` precede the name of ``base``.
    """
    if not is_local(base):
        return
    for one in models:
        found = list(_differences(base, one)) if is_local(one) else []
        largest = WITHOUT_BASE if called == SAME else COSINE
        apart = sorted(each for each in found if each[0] > DIFFERENCE and each[1] < largest)
        if len(apart) >= FEWEST and 2 * len(apart) > len(found):
            difference, cosine = apart[len(apart) // 2]
            yield (
                f"{escape(one.path)} was perhaps not trained from {called}{escape(base.path)}: {len(apart)} of "
                f"{len(found)} compared matrices differ by about {percent(difference)} of the norm of the "
                f"matrix in {escape(base.path)}, with a cosine of {cosine:.2f}"
            )


def _differences(base: Checkpoint, model: Checkpoint) -> Iterator[tuple[float, float]]:
    """Yield (norm of the difference / norm of the base's matrix, cosine) for some matrices of both models."""
    import numpy as np

    for key in spread(_shared(base, model), MATRICES):
        with suppress(CheckpointError):  # the verb reports a tensor that cannot be read
            box = middle(base[key].shape)
            ours, theirs = (numbers(each, key, box).reshape(-1) for each in (base, model))
            size, other = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
            if size and other and isfinite(size) and isfinite(other):
                yield float(np.linalg.norm(theirs - ours)) / size, float(ours @ theirs) / (size * other)


def _shared(base: Checkpoint, model: Checkpoint) -> Sequence[str]:
    """Return the keys of matrices that both models have in the same shape, except embeddings and output layers."""
    return [
        key
        for key, info in base.items()
        if is_sampled(info) and key in model and model[key].shape == info.shape and is_sampled(model[key])
        and not EMBEDDING.search(key) and not HEAD.search(key)
    ]  # fmt: skip


BLOCK = 1 << 20
"""The number of bytes that are read from a file at a time."""
LARGEST_FILE = 256 << 20
"""The largest file, in bytes, whose contents are compared to find copies of the same checkpoint."""
LAST_BYTES = 1 << 16
"""The number of bytes at the end of each file that are compared before whole files are."""


def twice_notes(opened: Sequence[Checkpoint], factors: Sequence[float] = ()) -> list[str]:
    """Return notes on inputs that are the same file, or copies of one file.

    Whole files are compared only if their sizes, fingerprints and last bytes are equal. If the result is a sum of the
    inputs, each times one of ``factors``, the notes say which of them cancel.
    """
    given: dict[tuple[str, Hashable], list[Checkpoint]] = {}
    for one in opened:
        if not one.in_memory:
            given.setdefault((one.path, _outline(one)), []).append(one)
    notes: list[str] = []
    groups: dict[Hashable, list[list[Checkpoint]]] = {}
    for (path, outline), times in given.items():
        copies = groups.setdefault(outline, [times])
        first, one = copies[0][0], times[0]
        if first is one:
            continue
        if not _is_copy(first, one):
            groups[path, outline] = [times]
        elif differences := _decoded_otherwise(first, one):
            notes += differences
            groups[path, outline] = [times]
        else:
            copies.append(times)
    by_input = {id(one): factor for one, factor in zip(opened, factors, strict=False)}
    return [*notes, *(note for copies in groups.values() for note in _counted(copies, by_input))]


def _counted(copies: Sequence[Sequence[Checkpoint]], factors: Mapping[int, float]) -> Iterator[str]:
    """Yield a note if the same weights count more than once; ``copies`` has each file as often as it is given.

    ``factors`` is {id of an input: its factor in the sum of the inputs}; it is empty if they are not summed.
    """
    first, *others = copies
    number = sum(map(len, copies))
    cancel = bool(factors) and not sum(factors.get(id(one), 1) for times in copies for one in times)
    if others:
        have = "has" if len(others) == 1 else "have"
        end = "and these weights cancel in the sum" if cancel else f"so these weights count {_times(number)}"
        yield f"{together([*map(_as_given, others)])} {have} the same weights as {escape(_as_given(first))}, {end}"
    elif number > 1:
        end = "and cancels in the sum" if cancel else f"so its weights count {_times(number)}"
        yield f"{escape(first[0].path)} is given {_times(number)}, {end}"


def _as_given(times: Sequence[Checkpoint]) -> str:
    return f"{times[0].path} (given {_times(len(times))})" if len(times) > 1 else times[0].path


def _times(number: int) -> str:
    return "twice" if number == 2 else f"{number} times"


def _decoded_otherwise(one: Checkpoint, copy: Checkpoint) -> list[str]:
    """Return notes on quantisation settings with which a checkpoint and its copy decode equal codes differently."""
    if _settings(one) == _settings(copy):
        return []
    from ...analysis.compare.compare import decoding_differences
    from ...analysis.compare.outline import outline_of

    return decoding_differences(outline_of(one.stored or one), outline_of(copy.stored or copy))


def base_notes(base: Checkpoint, models: Sequence[Checkpoint]) -> list[str]:
    """Return notes on models that are the base itself, or copies of it, so that their change from the base is zero."""
    if base.in_memory:
        return []
    outline, zero = _outline(base), "its change from the base is zero, so it can only make the merged change smaller"
    notes = []
    for one in models:
        if one.in_memory or _outline(one) != outline:
            continue
        if one.path == base.path:
            notes.append(f"{escape(one.path)} is both the base and a model: {zero}")
        elif _settings(one) == _settings(base) and _is_copy(base, one):
            notes.append(f"{escape(one.path)} has the same weights as the base {escape(base.path)}: {zero}")
    return notes


def _settings(one: Checkpoint) -> Mapping[str, Any]:
    """Return the quantisation settings of a checkpoint: with other settings, equal codes decode to other weights."""
    return (one.stored or one).quantisation


def _outline(one: Checkpoint) -> Hashable:
    """Return a value that is equal for two checkpoints if they may be copies of each other.

    If a file is remote or deleted after use (``consume``), the value is the path and the root (the dotted path of the
    state dict). If a file is larger than ``LARGEST_FILE``, it is the real paths of the files and the root.
    """
    files = one.open_files()
    if any(isinstance(file, ConsumedFile) for file in files.values()):  # only its header can be read
        return one.path, one.root
    if "://" in one.path or any(each.name not in files for each in one.files):
        return one.path, one.root
    if any(each.size > LARGEST_FILE for each in one.files):
        return one.root, tuple(_real_path(files[each.name]) for each in one.files)
    ends = [files[each.name].read(max(0, each.size - LAST_BYTES), min(LAST_BYTES, each.size)) for each in one.files]
    return one.root, tuple((each.size, each.sha256) for each in one.files), tuple(map(bytes, ends))


def _real_path(file: File) -> str:
    return os.path.realpath(file.path if isinstance(file, LocalFile) else file.uri)


def _is_copy(one: Checkpoint, other: Checkpoint) -> bool:
    ours, theirs = one.open_files(), other.open_files()
    return all(_holds(ours[a.name], theirs[b.name]) for a, b in zip(one.files, other.files, strict=True))


def _holds(one: File, other: File) -> bool:
    """Return whether two files of the same size have the same contents."""
    if _real_path(one) == _real_path(other):
        return True
    places = range(0, one.size, BLOCK)
    return all(one.read(at, min(BLOCK, one.size - at)) == other.read(at, min(BLOCK, one.size - at)) for at in places)
