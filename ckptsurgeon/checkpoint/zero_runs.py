"""Finds tensors that are zeros because a part of the file is missing, as after an incomplete copy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import islice

from ..errors import CheckpointError
from ..storage.read.base import File
from ..storage.read.local import ConsumedFile, LocalFile
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing
from .values.zero_places import Place, Places, by_role, places_by_file, role_of
from .values.zero_rows import Files, LostRows, lost_rows

__all__ = ["PAGE", "UNDIVIDED", "is_zero_run_note", "zero_run_notes"]

PAGE = 4096
"""The smallest number of missing bytes that is looked for."""
SEGMENTS = 16
"""Programs download a file in at most about this many parts at once: the end of each part may be missing."""
UNDIVIDED = 4 * SEGMENTS * PAGE
"""A file of at most this many bytes is not downloaded in parts."""
BLOCK = 1 << 20
"""The number of bytes that are read at once."""
PROBE = 512
"""The number of bytes of a block that is read to find where zeros begin and end."""
NEAR = 16
"""Zeros begin or end in the middle of a row if the row has at least this many bytes before and after that place."""
ROLES = 2
"""Lost matrices have at least this many roles: new blocks may have one matrix of zeros on purpose."""
LOOKED_AT = 4
"""The largest number of other matrices of the same role that are looked at."""
STATISTICS = (".gram", ".fisher")
"""Endings of the keys that ``ckpt stats`` writes: they are zeros on purpose for experts that got no inputs."""
SAID = "the zeros begin or end in the middle of a row of "
WHOLE = "one after the other in the file, although those of other layers are not"
ROWS = "of zeros, perhaps because a part of the file is missing"


def zero_run_notes(
    tensors: Mapping[str, TensorInfo],
    handles: Mapping[str, File],
    keys: Collection[str] | None = None,
    *,
    pages: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[Note]:
    """Yield notes on tensors that are zeros because a part of the file is missing.

    Zeros that are there on purpose fill whole rows, or the same columns of several rows. So there are notes on three
    kinds of zeros: zeros that begin or end in the middle of a row; matrices of several roles, one after the other in
    the file, that are all zeros although the same matrices of other layers are not; and whole rows of zeros that seem
    to be lost (``lost_rows``).

    All bytes of the tensors ``keys`` are read. If ``keys`` is None, ``pages`` has the offsets of pages of zeros in each
    file, in order. If both are None, a few blocks are read at the end of each part in which a file may have been
    downloaded. ``handles`` maps each ``Storage.file`` to the open file. Remote files are not read, nor are files with
    unwritten ranges.
    """
    open_files = {name: file for name, file in sorted(handles.items()) if _is_readable(file)}
    matrix, cut, whole, rows = "", dict[str, None](), dict[str, None](), list[str]()
    by_file = cache(partial(places_by_file, tensors))  # only made if there are zeros, and once for all files
    files = Files(tensors, open_files, cache(partial(by_role, tensors)))
    for name, file in open_files.items():
        places = Places(by_file, name)
        with suppress(CheckpointError):  # commands that read the values report such errors
            for begin, end in _zeros(
                file, places, _pages(file, places, keys, None if pages is None else pages.get(name, ()))
            ):
                if at := _cut_row(file, places, begin, end):
                    matrix = matrix or at
                    cut.update((place.key, None) for place in places.between(begin, end))
                elif lost := lost_rows(files, file, places, begin, end):
                    rows += _said_of_rows(lost, file, begin, end)
                else:
                    whole.update(dict.fromkeys(_lost_matrices(files, places.within(begin, end))))
    yield from _notes(matrix, list(cut), list(whole), rows)


def _said_of_rows(lost: Iterable[LostRows], file: File, begin: int, end: int) -> Iterator[str]:
    where = f"bytes {begin:,} to {end - 1:,} of {file.name}"
    for number, one in enumerate(lost):
        yield f"{one.key} (rows {one.first} to {one.last}{'' if number else f': {where}'})"


def _notes(matrix: str, cut: Sequence[str], whole: Sequence[str], rows: Sequence[str]) -> Iterator[Note]:
    if cut:
        are = "is" if len(cut) == 1 else "are"
        yield Note(
            NoteKind.CUT_FILE,
            f"{count(len(cut), 'tensor')} {are} zeros, wholly or in part: {SAID}{escape(matrix)} (was a file with "
            f"missing parts copied?): {listing(cut)}",
        )
    if rows:
        has = "has rows" if len(rows) == 1 else "have rows"
        yield Note(
            NoteKind.ZERO_ROWS, f"{count(len(rows), 'matrix', 'matrices')} {has} {ROWS}: {listing(rows, where='')}"
        )
    if whole:
        yield Note(
            NoteKind.CUT_FILE,
            f"{len(whole)} matrices are all zeros, {WHOLE} (was a file with missing parts copied?): {listing(whole)}",
        )


def is_zero_run_note(note: Note) -> bool:
    """Return whether a note is from ``zero_run_notes``."""
    return note.kind in (NoteKind.CUT_FILE, NoteKind.ZERO_ROWS)


def _is_readable(file: File) -> bool:
    return isinstance(file, LocalFile) and not (isinstance(file, ConsumedFile) or file.closed or file.unwritten)


def _lost_matrices(files: Files, places: Sequence[Place]) -> Sequence[str]:
    """Return the keys of matrices, one after the other in a file, that are zeros and seem to be lost; else ().

    Their roles are their names without numbers and without ``PART``. They seem to be lost if there are at least two
    roles, and each role has a matrix elsewhere that is not zero.
    """
    matrices = dict.fromkeys(place.key for place in places if place.row and not place.key.endswith(STATISTICS))
    roles = dict.fromkeys(map(role_of, matrices))
    if len(roles) < ROLES:
        return ()
    for role in roles:
        others = islice((key for key in files.by_role()[role] if key not in matrices), LOOKED_AT)
        if not any(_has_values(files.handles, files.tensors[key]) for key in others):
            return ()
    return list(matrices)


def _has_values(files: Mapping[str, File], info: TensorInfo) -> bool:
    """Return whether a block in the middle of a tensor is not zero; False if its file cannot be read."""
    assert info.storage is not None
    file = files.get(info.storage.file)
    begin = info.storage.offset + info.offset + info.nbytes // 2
    return file is not None and any(file.read(begin, min(PROBE, info.nbytes - info.nbytes // 2)))


def _pages(file: File, places: Places, keys: Collection[str] | None, pages: Iterable[int] | None) -> Iterable[int]:
    if keys is not None:
        return _pages_of(file, places, keys)
    return _pages_at_ends(file) if pages is None else pages


def _zeros(file: File, places: Places, pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each range of zeros that contains one of ``pages``, if this page is in a matrix."""
    end = 0
    for page in pages:
        if page >= end and places.at(page) is not None and _is_zero(file, page, PAGE):
            begin, end = _around(file, page)
            yield begin, end


def _pages_at_ends(file: File) -> Iterator[int]:
    """Yield the offset of the last page of each part of a file, if the page begins with zeros."""
    if file.size > UNDIVIDED:
        ends = (file.size * number // SEGMENTS - PAGE for number in range(1, SEGMENTS + 1))
        yield from (at for at in ends if _is_zero(file, at, PROBE))


def _pages_of(file: File, places: Places, keys: Collection[str]) -> Iterator[int]:
    """Yield the offset of each page in the tensors ``keys`` that contains only zeros.

    Offsets are multiples of half a ``PAGE``: lost parts of a file begin at multiples of ``PAGE``.
    """
    zeros = bytes(PAGE)
    for place in places.all:
        for at in range(-(-place.begin // PAGE) * PAGE, place.end, BLOCK) if place.key in keys else ():
            block = file.read(at, min(BLOCK, place.end - at))
            yield from (at + one for one in range(0, len(block) - PAGE + 1, PAGE // 2) if block.startswith(zeros, one))


def _is_zero(file: File, begin: int, nbytes: int) -> bool:
    return file.read(begin, nbytes) == bytes(nbytes)


def _around(file: File, page: int) -> tuple[int, int]:
    """Return the (begin, end) of the zeros around a page of zeros.

    Only some blocks of ``PROBE`` bytes are read (see ``_steps``). So other bytes between the zeros may be missed.
    """
    last = page + PAGE - PROBE
    before = _steps(page // PROBE, lambda steps: _is_zero(file, page - steps * PROBE, PROBE))
    after = _steps((file.size - last) // PROBE - 1, lambda steps: _is_zero(file, last + steps * PROBE, PROBE))
    begin, end = page - before * PROBE, last + (after + 1) * PROBE
    head, tail = min(PROBE, begin), min(PROBE, file.size - end)
    more = file.read(begin - head, head), file.read(end, tail)
    return begin - head + len(more[0].rstrip(b"\0")), end + tail - len(more[1].lstrip(b"\0"))


def _steps(most: int, is_zero: Callable[[int], bool]) -> int:
    """Return the steps (at most ``most``) to the end of a run of zeros; ``is_zero(n)`` reads the block at step ``n``.

    This is an exponential search (1, 3, 7, 15 steps and so on, until a block is not zero), and then a binary search.
    Blocks between those that are read are taken for zeros.
    """
    good, step = 0, 1
    while good + step <= most and is_zero(good + step):
        good, step = good + step, 2 * step
    bad = min(good + step, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_zero(middle) else (good, middle)
    return good


def _are_lost_pages(one: Place, begin: int, end: int) -> bool:
    """Return whether the zeros from ``begin`` to ``end`` in a matrix fill whole pages of the file.

    Zeros that are there on purpose begin and end with rows or columns, and normally not at a page. But if the matrix
    itself begins at a page, its rows may begin at pages, too: then the result is False.
    """
    ends = [(at - one.begin) % one.row for at in (begin, end)]
    is_inside = all(NEAR <= column <= one.row - NEAR for column in ends) and end < one.end
    return begin % PAGE == end % PAGE == 0 != one.begin % PAGE and is_inside


def _cut_row(file: File, places: Places, begin: int, end: int) -> str:
    """Return the key of the matrix in which a run of zeros begins or ends in the middle of a row; '' if there is none.

    The run must continue in other rows. The same columns of the row before or after the run must not be zeros:
    otherwise the matrix may have been enlarged by columns of zeros.
    """
    one = places.at(begin)
    if one is not None and _are_lost_pages(one, begin, end):
        return one.key
    if one is not None:
        column = (begin - one.begin) % one.row
        rest, above = one.row - column, begin - one.row
        if min(column, rest) >= NEAR and above >= one.begin and any(file.read(above, min(rest, BLOCK))):
            more = rest + max(one.row, PAGE)
            if begin + more <= end and _is_zero(file, begin, min(more, BLOCK)):
                return one.key
    one = places.at(end)
    if one is not None:
        column = (end - one.begin) % one.row
        rest, below = one.row - column, end - column + one.row
        if min(column, rest) >= NEAR and below < one.end and any(file.read(below, min(column, BLOCK))):
            more = min(column + max(one.row, PAGE), BLOCK)
            if end - begin >= column + max(one.row, PAGE) and _is_zero(file, end - more, more):
                return one.key
    return ""
