"""Makes notes on values that cannot be right; only a small part of the bytes of a checkpoint is read for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter

from ...storage.read.base import File
from ...storage.read.local import LocalFile
from ...tensors.dtypes import has_non_finite
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...tensors.quantised.methods import is_packed_in_floats
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import NUMBER_IN_KEY, count, listing
from ..cast_codes import cast_code_notes
from ..zero_runs import UNDIVIDED, zero_run_notes
from .foreign_layers import foreign_layer_notes
from .impossible_values import CHECKED_ENDS, TENSORS, impossible_value_notes, read_extents, said_of
from .lost_scales import EIGHT_BITS, lost_scale_notes, unlike_other_layers
from .matrix_notes import mislabelled_float_notes, shifted_weight_notes
from .norms import around_zero_notes, unlike_layer_notes, without_one_notes
from .rank_files import QUERIES, doubled_file_notes, missing_rank_notes
from .samples import SmallSample, norm_weights, sampled_matrices, sampled_small_tensors
from .scales import activation_scales, inverse_scales, unusable_scales

__all__ = ["is_non_finite_note", "non_finite_notes", "value_notes"]

SAID = "NaN or infinite values"


def value_notes(
    tensors: Mapping[str, TensorInfo],
    handles: Mapping[str, File],
    codes: QuantisedTensors,
    *,
    are_described: bool = False,
    kind: str = "",
    is_gguf: bool = False,
) -> Iterator[Note]:
    """Yield notes on values that cannot be right.

    There are notes on: bytes that were never written; copied or missing files of ranks; codes without scales; wrong
    dtypes; shifted weights; impossible values and NaN; norms that are unlike the norms of other layers, or of other
    models of the same class.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. ``codes`` are the quantised
    tensors. If ``are_described`` is true, a config.json describes the tensors, and other notes compare them with it.
    ``kind`` is its ``model_type`` or, if ``is_gguf`` is true, the architecture in llama.cpp.
    """
    coded = codes.by_key
    yield from _unwritten_notes(tensors, handles)
    are_divided = any(file.size > UNDIVIDED for file in handles.values())
    runs = list(zero_run_notes(tensors, handles)) if are_divided else []
    yield from runs
    if len(handles) > 1:
        yield from doubled_file_notes(tensors, handles)
    if QUERIES in tensors:
        yield from missing_rank_notes(tensors)
    others = {key: info for key, info in tensors.items() if key not in coded} if coded else tensors
    sample = tuple(sampled_matrices(others, handles))
    if sample:
        yield from cast_code_notes(sample, coded)
    plain = {key: info for key, info in others.items() if info.dtype in EIGHT_BITS}
    if plain:
        unlike, floats = unlike_other_layers(plain, tensors, coded), sampled_matrices(plain, handles, EIGHT_BITS)
        yield from lost_scale_notes(tuple(floats), unlike, are_described=are_described)
    if sample:
        yield from mislabelled_float_notes(sample)
        yield from shifted_weight_notes(sample)
    if any(key.endswith(CHECKED_ENDS) for key in tensors):
        yield from impossible_value_notes(tensors, handles)
    numbers = tensors
    if coded:
        scales = activation_scales(tensors, coded)
        some, extent = scales[:: len(scales) // TENSORS + 1], read_extents(tensors, handles)
        yield from map(said_of, (*unusable_scales(some, extent), *inverse_scales(some, extent)))
        packed = {key for key, one in tensors.items() if one.shape[1:] == (1,) and is_packed_in_floats(key, codes)}
        numbers = {key: one for key, one in tensors.items() if key not in packed}
    small = sampled_small_tensors(numbers, handles)
    yield from non_finite_notes(tensors, small)
    if any(map(NUMBER_IN_KEY.search, small.raw)):  # else there are no other layers to compare with
        yield from unlike_layer_notes(small, are_zeros_said=bool(runs))
    norms = norm_weights(others, handles)
    if norms:
        yield from around_zero_notes(norms, "" if is_gguf else kind)
        yield from foreign_layer_notes(norms, others)
        yield from without_one_notes(norms, kind, is_gguf=is_gguf)


@notes_of(NoteKind.WRONG_WEIGHTS)
def non_finite_notes(tensors: Mapping[str, TensorInfo], sample: SmallSample) -> Iterator[str]:
    """Yield a note if small tensors of floats have NaN or infinite values."""
    found = [key for key, raw in sample.raw.items() if has_non_finite(tensors[key].dtype, raw)]
    if found:
        of = f" of {len(sample.raw)} that were looked at ({sample.of:,} in all)" if len(sample.raw) < sample.of else ""
        have = "has" if len(found) == 1 else "have"
        yield f"{count(len(found), 'small tensor')}{of} {have} {SAID}: {listing(found)}"


def is_non_finite_note(note: str) -> bool:
    """Return whether a note is from ``non_finite_notes``."""
    return SAID in note


@notes_of(NoteKind.UNWRITTEN)
def _unwritten_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note on tensors with bytes that were never written to the file and are read as zeros.

    A program that downloads a file in several parts first gives the file its full size. So the size does not show that
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
