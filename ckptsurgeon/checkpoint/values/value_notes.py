"""Makes notes on values that cannot be right; only a small part of the bytes of a checkpoint is read for them."""

from __future__ import annotations

import math
import re
import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import LocalFile, is_local
from ...tensors.dtypes import has_non_finite, is_masked, size_of_float
from ...tensors.info import TensorInfo
from ...tensors.quantised.encoding import QuantisedTensors
from ...tensors.quantised.methods import is_packed_in_floats
from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import NUMBER_IN_KEY, count, escape, listing
from ..cast_codes import cast_code_notes
from ..zero_runs import UNDIVIDED, zero_run_notes
from .foreign_layers import foreign_layer_notes
from .impossible_values import CHECKED_ENDS, TENSORS, impossible_value_notes, read_extents, said_of
from .lost_scales import EIGHT_BITS, lost_scale_notes, unlike_other_layers
from .matrix_notes import mislabelled_float_notes, shifted_weight_notes
from .norms import around_zero_notes, unlike_layer_notes, without_one_notes
from .rank_files import QUERIES, doubled_file_notes, missing_rank_notes
from .samples import NORM, VALUES, MatrixSample, SmallSample
from .scales import activation_scales, inverse_scales, unusable_scales

__all__ = ["MATRICES", "is_norm", "is_said_not_finite", "non_finite_notes", "sampled_matrices", "value_notes"]

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
        some, extent = scales[:: len(scales) // TENSORS + 1], read_extents(tensors, handles, is_exact=True)
        yield from map(said_of, (*unusable_scales(some, extent), *inverse_scales(some, extent)))
        packed = {key for key, one in tensors.items() if one.shape[1:] == (1,) and is_packed_in_floats(key, codes)}
        numbers = {key: one for key, one in tensors.items() if key not in packed}
    small = _sampled_small_tensors(numbers, handles)
    yield from non_finite_notes(tensors, small)
    if any(map(NUMBER_IN_KEY.search, small.raw)):  # else there are no other layers to compare with
        yield from unlike_layer_notes(small, are_zeros_said=bool(runs))
    norms = _norm_weights(others, handles)
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


def is_said_not_finite(key: str, notes: Sequence[str]) -> bool:
    """Return whether one of ``notes`` names a tensor as having values that are NaN or infinite."""
    name = escape(key)
    found = [note for note in notes if SAID in note and name in note]  # SAID: it is from ``non_finite_notes``
    return any(re.search(rf"(?<!\S){re.escape(name)}(?![^\s,])", note) for note in found)


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


# The values that are read. Commands that otherwise read only headers read these few values too.


def _some_of_each_role(keys: Iterable[str], most: int) -> Iterator[str]:
    """Yield at most ``most`` keys: the same number for each role (name without numbers), spread over its layers."""
    roles: dict[str, list[str]] = {}
    for key in keys:
        roles.setdefault(NUMBER_IN_KEY.sub("#", key), []).append(key)
    each = max(1, most // max(1, len(roles)))
    for some in [*roles.values()][:most]:
        number = min(each, len(some))
        yield from (some[at * len(some) // number] for at in range(number))


MATRICES, IN_FILE, FILES = 32, 2, 256
"""``VALUES`` values are read of each of about ``MATRICES`` matrices, in at most ``FILES`` files.

Of each file, at least ``IN_FILE`` matrices are read: so there are more than ``MATRICES`` if there are many files.
"""
KEYS = 32
"""For each matrix that is read of a file, at most this many keys of the file are considered."""
COLUMNS = 64
"""Matrices with fewer columns are not read."""
DTYPES = ("bfloat16", "float16", "float32")


def sampled_matrices(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], dtypes: Container[str] = DTYPES
) -> Iterator[MatrixSample]:
    """Yield some values of some matrices of each file, from as many layers as possible; only matrices of ``dtypes``.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Matrices that cannot be read are
    left out: the command reports the fault when it reads the values.
    """
    for key, file in _chosen(tensors, handles, dtypes):
        info = tensors[key]
        assert info.storage is not None
        begin = info.storage.offset + info.offset + (info.numel - VALUES) // 2 * info.itemsize
        with suppress(CheckpointError):
            yield MatrixSample(key, info.dtype, file.read(begin, VALUES * info.itemsize))


def _chosen(
    tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], dtypes: Container[str]
) -> Iterator[tuple[str, File]]:
    """Yield the matrices to look at, and their files: some of each file, spread over the file."""
    by_file: dict[str, list[str]] = {}
    for key, info in tensors.items():
        if info.storage is not None:
            by_file.setdefault(info.storage.file, []).append(key)
    number = max(IN_FILE, MATRICES // max(1, len(by_file)))
    for name in list(by_file)[:: len(by_file) // FILES + 1]:
        file, keys = handles.get(name), by_file[name]
        if not is_local(file):
            continue
        some = [key for key in keys[:: len(keys) // (KEYS * number) + 1] if _is_matrix(tensors[key], dtypes)]
        yield from ((key, file) for key in _spread(some, number))


def _spread(keys: list[str], number: int) -> list[str]:
    """Return at most ``number`` keys, from as many layers, and with as many roles (keys without numbers), as possible.

    With every n-th key instead, all keys could have one role that only a few layers have.
    """
    if len(keys) <= number:
        return keys
    layers: dict[str, list[str]] = {}
    for key in keys:
        found = NUMBER_IN_KEY.search(key)
        layers.setdefault(key[: found.end()] if found else "", []).append(key)
    if len(layers) > number:
        layers.pop("", None)
    groups, chosen, used = list(layers.values()), dict[str, None](), Counter[str]()
    for at in range(number):
        group = groups[(2 * at + 1) * len(groups) // (2 * number)]
        left = {key: NUMBER_IN_KEY.sub("#", key) for key in group if key not in chosen}
        if left:
            key = min(left, key=lambda one: used[left[one]])
            used[left[key]] += 1
            chosen[key] = None
    return list(chosen)


def _is_matrix(info: TensorInfo, dtypes: Container[str]) -> bool:
    shape = info.shape
    return len(shape) > 1 and shape[-1] >= COLUMNS and info.numel >= VALUES and info.dtype in dtypes and info.is_plain


SAMPLED = 64
"""The largest number of small tensors that are read."""
MOST = 64 * SAMPLED
"""The largest number (approximate) of small tensors, spread over the model, that are sorted by role."""
SMALL = 32 << 10
"""The largest small tensor: 8192 values in float32."""


def _sampled_small_tensors(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> SmallSample:
    """Read at most ``SAMPLED`` small tensors of floats, some of each role (name without numbers).

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read.
    """
    are_small: dict[tuple[str, tuple[int, ...]], bool] = {}  # tens of thousands of tensors have a few shapes
    small = []
    for key, info in tensors.items():
        is_small = are_small.get((info.dtype, info.shape))
        if is_small is None:
            is_small = bool(size_of_float(info.dtype)) and 0 < info.nbytes <= SMALL
            are_small[info.dtype, info.shape] = is_small
        if is_small and info.is_plain:
            small.append(key)
    chosen = _some_of_each_role((key for key in small[:: len(small) // MOST + 1] if not is_masked(key)), SAMPLED)
    return SmallSample(dict(_first_values(chosen, tensors, handles, SMALL)), len(small))


def _first_values(
    keys: Iterable[str], tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], most: int
) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of at most ``most`` values of each tensor that can be read from a local file."""
    for key in keys:
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # commands that read the values report such errors
            yield key, file.read(info.storage.offset + info.offset, min(info.numel, most) * info.itemsize)


STATISTICS = ("running_mean", "moving_mean", "moving_mean:0")
"""The last part of the key of tensors that only batch norms have. Weights of batch norms are 0 for pruned channels."""
NORMS, NORM_VALUES, FEWEST_VALUES = 384, 512, 16
"""The most norms that are read, the most values of each, and the fewest values of a norm that is read."""
LETTERS = {"float32": "f", "float16": "e", "float64": "d"}


def is_norm(key: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether a tensor has the weights of a norm, by its name; batch norms are left out."""
    if len(tensors[key].shape) != 1 or not NORM.search(key):
        return False
    at = max(key.rfind("."), key.rfind("/")) + 1
    return not any(key[:at] + name in tensors for name in STATISTICS)


def _norm_weights(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> dict[str, tuple[float, ...]]:
    """Return the first ``NORM_VALUES`` weights of at most ``NORMS`` norms, by key; of more norms, some of each role.

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read. Norms that cannot be read, or
    that have NaN or infinite values, are left out.
    """
    norms = [key for key, info in tensors.items() if is_norm(key, tensors) and _can_read(info)]
    chosen = norms if len(norms) <= NORMS else _some_of_each_role(norms, NORMS)
    found = {
        key: _numbers(tensors[key].dtype, raw) for key, raw in _first_values(chosen, tensors, handles, NORM_VALUES)
    }
    return {key: values for key, values in found.items() if math.isfinite(sum(values))}


def _can_read(info: TensorInfo) -> bool:
    is_float = info.dtype in LETTERS or info.dtype == "bfloat16"
    return is_float and info.numel >= FEWEST_VALUES and info.is_plain and info.storage is not None


def _numbers(dtype: str, raw: bytes) -> tuple[float, ...]:
    """Return little-endian values as Python's floats. A bfloat16 is the upper half of a float32."""
    if dtype == "bfloat16":
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[::2], raw[1::2]
        raw, dtype = bytes(wide), "float32"
    letter = LETTERS[dtype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)
