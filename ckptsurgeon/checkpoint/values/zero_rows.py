"""Finds whole rows of zeros that are there because a part of the file is missing, not on purpose.

Rows of zeros may be there on purpose: padding of embeddings, rows that are zeros in all layers, and pruned heads and
channels. The rows of pruned heads and channels are zeros in several matrices of a layer, or in several places of a
matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...storage.read.base import File
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY
from .zero_places import Place, Places, place_of, role_of

__all__ = ["LEAST", "Files", "LostRows", "lost_rows"]

LEAST, NBYTES = 8, 4096
"""Rows of zeros seem to be lost only if there are at least ``LEAST`` rows, which have ``NBYTES`` bytes or more.

A few rows of zeros may be neurons that have died.
"""
PROBE, PROBES = 512, 64
"""The number of bytes that are read at each place of a range, and the number of places."""
EXACT = 64 << 20
"""All bytes of a range are read if it has at most this many; else a block at each of ``PROBES`` places."""
LOOKED_AT = 4
"""The largest number of matrices of the same role that are compared."""
WEIGHT = re.compile(r"(?:[._]weight\w*|[._]blocks|qweight|[._/]kernel|_proj|[._][wW]\d?)$")
"""Matches the ends of the keys of weights, quantised or not."""
OTHER = re.compile(r"mask|lora_|pos(?:ition)?(?:al|s)?_?(?:emb|enc)|relative|rotary|filter|mel_|window", re.IGNORECASE)
"""Matches the keys of masks, tables and factors of adapters, which may have rows of zeros on purpose."""
VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens\w*|wte|\w*embeddings?|tok_embeddings|embed_in|shared|lm_head|embed_out|output|token_embd"
    r"|output_layer|proj_out|decoder|classifier|head|score)\.weight$"
)
"""Matches the keys of embeddings and output layers, which may have rows of zeros for future tokens or labels."""


class LostRows(NamedTuple):
    """The rows ``first`` to ``last`` of a matrix, which are zeros."""

    key: str
    first: int
    last: int


class Files(NamedTuple):
    """The tensors of a checkpoint, their open files, and a function that returns {role (key without numbers): keys}."""

    tensors: Mapping[str, TensorInfo]
    handles: Mapping[str, File]
    by_role: Callable[[], Mapping[str, list[str]]]


class _Rows(NamedTuple):
    """Rows of the matrix at ``place`` that consist of zeros: the bytes ``begin`` to ``end`` of the file."""

    place: Place
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        return (self.begin, self.end) == self.place[:2]

    @property
    def is_inside(self) -> bool:
        return self.place.begin < self.begin and self.end < self.place.end


def lost_rows(files: Files, file: File, places: Places, begin: int, end: int) -> Sequence[LostRows]:
    """Return the rows of matrices in a range of zeros of a file (``begin`` to ``end``) if they seem lost; else ().

    Rows seem lost in three cases: the same rows in other layers are not zeros; they are the last rows of one matrix and
    the first rows of the next; or the range also contains whole matrices that are not zeros in other layers.
    """
    found = {place.begin: _rows_of(place, begin, end) for place in places.between(begin, end) if place.row}
    whole = [one for one in found.values() if one.is_whole]
    partly = [one for one in found.values() if not one.is_whole and _is_long(one)]
    if not partly or not all(WEIGHT.search(one.place.key) for one in partly):
        return ()
    if any(OTHER.search(one.place.key) for one in partly):
        return ()
    likes = [_is_unlike_others(files, file, places, one, (begin, end)) for one in partly]
    if False in likes or not _is_lost(files, partly, likes, whole, (begin, end)):
        return ()
    if not _is_filled(file, partly[0].begin, partly[-1].end):
        return ()
    return [LostRows(one.place.key, *_numbers(one)) for one in (*partly[:1], *whole, *partly[1:])]


def _rows_of(place: Place, begin: int, end: int) -> _Rows:
    """Return the rows of a matrix that lie completely in the bytes ``begin`` to ``end`` of its file."""
    first = -(-(max(begin, place.begin) - place.begin) // place.row)
    last = (min(end, place.end) - place.begin) // place.row
    return _Rows(place, place.begin + first * place.row, place.begin + last * place.row)


def _numbers(rows: _Rows) -> tuple[int, int]:
    place = rows.place
    return (rows.begin - place.begin) // place.row, (rows.end - place.begin) // place.row - 1


def _is_long(rows: _Rows) -> bool:
    return rows.end - rows.begin >= max(LEAST * rows.place.row, NBYTES)


def _is_lost(
    files: Files, partly: Sequence[_Rows], likes: Sequence[bool | None], whole: Sequence[_Rows], run: tuple[int, int]
) -> bool:
    """Return whether rows of zeros seem lost; ``run`` is the range (begin, end) of zeros in the file around them.

    ``whole`` has the matrices that are completely zero, ``partly`` the rows of zeros in other matrices, and ``likes``
    the result of ``_is_unlike_others`` for each item of ``partly``.
    """
    if len(partly) > 1:
        return True
    (one,) = partly
    if whole:
        matrices = [rows for rows in whole if WEIGHT.search(rows.place.key)]
        return bool(matrices) and all(_has_values_elsewhere(files, rows, run) for rows in matrices)
    if VOCABULARY.search(one.place.key):  # ckpt check itself checks the rows of embeddings
        return False
    return likes[0] is True or one.is_inside


def _has_values_elsewhere(files: Files, rows: _Rows, run: tuple[int, int]) -> bool:
    """Return whether the matrix of ``rows`` has values in most other layers, of which only a few are read."""
    others = _others(files, rows.place, run)
    return bool(others) and sum(_has_zeros(*one, 0, 1) for one in others) * 2 < len(others)


def _is_unlike_others(files: Files, file: File, places: Places, rows: _Rows, run: tuple[int, int]) -> bool | None:
    """Return whether only ``rows`` are zeros: no other rows of the matrix, and not the same rows of similar matrices.

    Similar matrices are the matrices of the same layer, and a few matrices of the same role in other layers. Most
    matrices of other layers must have no zeros at all. Returns None if no other layer has the role. ``run`` is the
    range of zeros around the rows.
    """
    place, (first, last) = rows.place, _span(rows)
    if _has_zeros(file, place, 0, first) or _has_zeros(file, place, last, 1):
        return False
    layer = _layer_of(place.key)
    for one in places.all:
        of_layer = one.row and one.key != place.key and _layer_of(one.key) == layer and one.begin != place.begin
        if of_layer and not (one.begin < run[1] and run[0] < one.end) and _is_zero_in(file, one, first, last):
            return False
    others = _others(files, place, run)
    return sum(_has_zeros(*one, 0, 1) for one in others) * 2 < len(others) if others else None


def _span(rows: _Rows) -> tuple[float, float]:
    """Return where ``rows`` begin and end in their matrix, as fractions of its size: (0.5, 1.0) is the second half."""
    size = rows.place.end - rows.place.begin
    return (rows.begin - rows.place.begin) / size, (rows.end - rows.place.begin) / size


def _layer_of(key: str) -> str:
    """Return the key up to its last number: the name of a layer, or of an expert; '' without a number."""
    *_, last = ("", *(one.end() for one in NUMBER_IN_KEY.finditer(key)))
    return key[:last] if last else ""


def _others(files: Files, place: Place, run: tuple[int, int]) -> list[tuple[File, Place]]:
    """Return (file, place) of a few matrices of other layers with the same role, shape and dtype as that of ``place``.

    Matrices in the range of zeros ``run`` are left out.
    """
    info = files.tensors[place.key]
    same = [
        key for key in files.by_role()[role_of(place.key)]
        if key != place.key and files.tensors[key].shape == info.shape and files.tensors[key].dtype == info.dtype
    ]  # fmt: skip
    some = same[:: len(same) // LOOKED_AT + 1]
    found = [(one, place_of(key, one)) for key in some if (one := files.tensors[key]).storage is not None]
    return [
        (files.handles[one.storage.file], at) for one, at in found
        if one.storage is not None and one.storage.file in files.handles and at.begin != place.begin
        and not (_same_file(one, info) and at.begin < run[1] and run[0] < at.end)
    ]  # fmt: skip


def _same_file(one: TensorInfo, other: TensorInfo) -> bool:
    return one.storage is not None and other.storage is not None and one.storage.file == other.storage.file


def _has_zeros(file: File, place: Place, first: float, last: float) -> bool:
    """Return whether any of a few blocks of a matrix is zero; the blocks are spread from ``first`` to ``last``.

    ``first`` and ``last`` are fractions of the size of the matrix.
    """
    return any(not any(one) for one in _probes(file, place, first, last, PROBES))


def _is_zero_in(file: File, place: Place, first: float, last: float) -> bool:
    """Return whether all of a few blocks of a matrix are zero; the blocks are spread from ``first`` to ``last``.

    ``first`` and ``last`` are fractions of the size of the matrix.
    """
    probes = list(_probes(file, place, first, last, LEAST))
    return bool(probes) and not any(map(any, probes))


def _probes(file: File, place: Place, first: float, last: float, number: int) -> Iterable[bytes]:
    begin, end = (place.begin + int((place.end - place.begin) * at) for at in (first, last))
    size = min(PROBE, end - begin)
    step = max((end - begin - size) // max(number - 1, 1), size)
    if size > 0 and end - begin >= place.row:
        for at in range(begin, end - size + 1, step):
            yield file.read(at, size)


def _is_filled(file: File, begin: int, end: int) -> bool:
    """Return whether the bytes ``begin`` to ``end`` of a file are zeros; of a long range, only some blocks are read."""
    block = 1 << 20
    step = block if end - begin <= EXACT else max(block, (end - begin) // PROBES)
    return not any(file.read(at, min(block, end - at)).strip(b"\0") for at in range(begin, end, step))
