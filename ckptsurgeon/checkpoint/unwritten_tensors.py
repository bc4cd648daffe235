"""Makes a note on tensors whose bytes were never written to the file, for example by an interrupted download."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from ..storage.read.base import File
from ..storage.read.local import LocalFile
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import notes_of
from ..util.text import count, listing

__all__ = ["unwritten_notes"]


@notes_of(NoteKind.UNWRITTEN)
def unwritten_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note on the tensors of which some bytes were never written to the file, and are read as zeros.

    Programs that download a file in several parts give it its full size first, so that its size does not show that
    parts are missing. ``handles`` maps each ``Storage.file`` to the open file.
    """
    sparse = {name: one.unwritten for name, one in handles.items() if isinstance(one, LocalFile) and one.unwritten}
    if not sparse:
        return
    keys = [key for key, info in tensors.items() if _is_in(info, sparse)]
    if keys:
        yield (
            f"{count(len(keys), 'tensor')} {'is' if len(keys) == 1 else 'are'} zeros, wholly or in part, because the "
            f"bytes were never written to the file (was a download interrupted?): {listing(keys)}"
        )


def _is_in(info: TensorInfo, sparse: Mapping[str, Sequence[tuple[int, int]]]) -> bool:
    """Return whether some bytes of a tensor were never written.

    ``sparse`` maps the name of a file to the (begin, end) of its unwritten ranges, in order.
    """
    storage = info.storage
    found = sparse.get(storage.file) if storage is not None else None
    if storage is None or not found:
        return False
    begin = storage.offset + (info.offset if info.stride is None else 0)
    place = bisect_right(found, begin, key=itemgetter(1))
    if place == len(found) or 0 in info.shape:
        return False
    return found[place][0] <= begin or found[place][0] < begin + (info if info.stride is None else storage).nbytes
