"""Computes how several models have changed from a base: reads all of them block by block, each value once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.column_bands import banded
from ...engine.prefetch import fetch_tensors
from ...errors import FormatError
from ...planning.keys.pattern_hints import chosen_keys
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...tensors.ops.regions import Array, blocks
from ...util.text import listing, natural_key
from .bytewise import Seen, check_records
from .changes import Agreement, Changes, ChangeSums, ModelChange, TensorChanges, pairs_of, summed
from .sums import ZERO, dot, scaled
from .tensor_difference import ELEMENTS, has_figures, values_of

__all__ = ["StoredTensor", "compare_changes", "measure_changes", "why_not_numbers"]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, and the open checkpoint that stores it under ``key``."""

    checkpoint: Checkpoint
    key: str

    @property
    def info(self) -> TensorInfo:
        """The header of the tensor."""
        return self.checkpoint[self.key]


Compared: TypeAlias = tuple[StoredTensor, Mapping[int, StoredTensor]]
"""A tensor of the base, and the same tensor of each model, by the index of the model."""


def compare_changes(
    base: Checkpoint, models: Sequence[Checkpoint], *, include: Iterable[str] | None = (),
    exclude: Iterable[str] | None = (), progress: Callable[[int, int], None] | None = None,
) -> Changes:  # fmt: skip
    """Return the changes of each model's tensors from the tensors of the base, and the agreement of these changes.

    Only tensors that the base and a model have in the same shape are read. ``include`` and ``exclude`` are patterns
    that select keys; ``progress`` is called with (bytes done, bytes in all). Raises PatternError for a pattern that
    matches nothing, SourceError if a file cannot be read, and FormatError for a wrong CRC-32.
    """
    every = dict.fromkeys(key for one in (base, *models) for key in one)
    chosen = chosen_keys(list(every), include, exclude, whose="checkpoint", names={})
    keys = frozenset(chosen.keys)
    missing, added, reshaped = dict[int, tuple[str, ...]](), dict[int, tuple[str, ...]](), dict[int, tuple[str, ...]]()
    for index, model in enumerate(models):
        missing[index] = _sorted(key for key in base if key in keys and key not in model)
        added[index] = _sorted(key for key in model if key in keys and key not in base)
        reshaped[index] = _sorted(
            key for key in base if key in keys and key in model and model[key].shape != base[key].shape
        )
    tied = [key for key in base if key in keys and base.ties.get(key) in keys and _is_tied(key, base, models)]
    to_read, refused = _to_read(base, models, keys.difference(tied))
    tensors = []
    for key, sums in measure_changes(to_read, progress):
        if isinstance(sums, str):
            refused[key] = sums
        else:
            tensors.append(TensorChanges(key, sums, is_weight=DTYPES[base[key].dtype].is_floating))
    return Changes(
        base.path, tuple(one.path for one in models), tuple(tensors), missing, added, reshaped, refused,
        len(every) - len(keys), (*chosen.notes, *_tied_note(tied), *_integer_note(tensors)),
    )  # fmt: skip


def _is_tied(key: str, base: Checkpoint, models: Sequence[Checkpoint]) -> bool:
    """Return whether ``key`` is tied to the same earlier key in the base and in each model that has ``key``."""
    having = (base, *(one for one in models if key in one))
    return key in base.ties and all(one.ties.get(key) == base.ties[key] for one in having)


def _tied_note(tied: Sequence[str]) -> list[str]:
    names = listing(tied, 3, where="")
    return [f"tied tensors are compared once, under their first key, so these are left out: {names}"] if tied else []


def _integer_note(tensors: Sequence[TensorChanges]) -> list[str]:
    others = [one.key for one in tensors if not one.is_weight]
    if not others or len(others) == len(tensors):
        return []
    return [
        "tensors of integers are compared, but left out of the figures of layers and models: "
        f"{listing(others, 3, where='')}"
    ]


def _sorted(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(keys, key=natural_key))


def _to_read(
    base: Checkpoint, models: Sequence[Checkpoint], keys: frozenset[str]
) -> tuple[dict[str, Compared], dict[str, str]]:
    """Return {key: the tensors to read}, and {key: reason} of unreadable tensors."""
    found, refused = dict[str, Compared](), dict[str, str]()
    for key in (one for one in base if one in keys):
        having = {
            index: StoredTensor(model, key)
            for index, model in enumerate(models)
            if key in model and model[key].shape == base[key].shape
        }
        own = StoredTensor(base, key)
        reason = next(filter(None, map(why_not_numbers, (own.info, *(one.info for one in having.values())))), "")
        if having and reason:
            refused[key] = reason
        elif having:
            found[key] = own, having
    return found, refused


def why_not_numbers(info: TensorInfo) -> str:
    """Return the reason why the values of a tensor cannot be read as numbers, "" if they can."""
    return info.opaque or ("" if has_figures(info) else f"{info.dtype} values are not plain numbers")


def measure_changes(
    tensors: Mapping[str, Compared], progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[str, ChangeSums | str]]:
    """Yield each key with the sums that measure its changes, or with the reason why a tensor cannot be decoded.

    All values are read once, block by block. ``progress`` is called with (bytes done, bytes in all).
    """
    sources = {key: (base, *having.values()) for key, (base, having) in tensors.items()}
    fetch_tensors((one.checkpoint, one.info) for some in sources.values() for one in some)
    sizes = {key: sum(one.info.nbytes for one in some) for key, some in sources.items()}
    done, total = 0, sum(sizes.values())
    seen: dict[int, Seen] = {}
    for key, (base, having) in tensors.items():
        for one in sources[key]:
            check_records(one.checkpoint, (one.key,), seen.setdefault(id(one.checkpoint), set()))
        try:
            yield key, _sums(base, having)
        except FormatError as error:
            if error.rule != "scale":
                raise
            yield key, error.message.rstrip(".")
        done += sizes[key]
        if progress is not None:
            progress(done, total)


def _sums(base: StoredTensor, models: Mapping[int, StoredTensor]) -> ChangeSums:
    infos = {index: one.info for index, one in models.items()}
    read = {index: banded(infos[index], one.checkpoint) for index, one in models.items()}
    info, first = base.info, banded(base.info, base.checkpoint)
    found = [ChangeSums({one: ModelChange() for one in models}, {pair: Agreement() for pair in pairs_of(list(models))})]
    for box in blocks(info.shape, ELEMENTS):
        here = values_of(first, info, box)
        found.append(_sums_of_block(here, {i: values_of(read[i], infos[i], box) for i in models}))
    return summed(found)


def _sums_of_block(base: Array, models: Mapping[int, Array]) -> ChangeSums:
    """Return the sums over a block of flat arrays. A complex number counts as one element."""
    if any(one.dtype.kind == "c" for one in (base, *models.values())):
        base, models = base.astype("<c16"), {index: values.astype("<c16") for index, values in models.items()}
    usable = np.isfinite(base)
    for values in models.values():
        usable &= np.isfinite(values)
    left_out, odd = int(usable.size - np.count_nonzero(usable)), dict[int, int]()
    if left_out:
        odd = {index: _differing(base[~usable], values[~usable]) for index, values in models.items()}
        base, models = base[usable], {index: values[usable] for index, values in models.items()}
    with np.errstate(over="ignore", invalid="ignore"):  # if float64 cannot hold a change, the figure becomes None
        own = scaled(_as_float(base))
        gaps = {index: gap for index, values in models.items() if (gap := _gap(base, values)) is not None}
        changes = {index: scaled(gap) for index, gap in gaps.items()}
        squares = {index: dot(one, one) for index, one in changes.items()}
        size, of_base = base.size, dot(own, own)
        pairs = {}
        for a, b in pairs_of(list(models)):
            product, both, same = ZERO, 0, 0
            if a in gaps and b in gaps:
                product = dot(changes[a], changes[b])
                both = int(np.count_nonzero((gaps[a] != 0) & (gaps[b] != 0)))
                same = int(np.count_nonzero(_directions(gaps[a], gaps[b]) > 0))
            pairs[a, b] = Agreement(size, both, same, product, squares.get(a, ZERO), squares.get(b, ZERO))
    counts = {index: int(np.count_nonzero(gap)) for index, gap in gaps.items()}
    found = {i: ModelChange(size, counts.get(i, 0), squares.get(i, ZERO), of_base, odd.get(i, 0)) for i in models}
    return ChangeSums(found, pairs, left_out)


def _differing(base: Array, values: Array) -> int:
    """Return the number of values that differ; two NaN are equal."""
    return int(np.count_nonzero((base != values) & ~(np.isnan(base) & np.isnan(values))))


def _directions(a: Array, b: Array) -> Array:
    """Return, for each element, 1 if two changes have the same direction, -1 if opposite directions, 0 if neither.

    The result is 0 if one of the two changes is zero.
    """
    agreement: Array = np.sign((np.sign(a).conj() * np.sign(b)).real)
    return agreement


def _gap(base: Array, values: Array) -> Array | None:
    """Return the change of each value, as float64 or complex128; None if no value has changed."""
    if np.array_equal(base, values):
        return None
    if base.dtype.kind in "iu" and values.dtype.kind in "iu":
        exact = np.where(values > base, 1.0, -1.0) * np.maximum(np.abs(values.astype("<f8") - base.astype("<f8")), 1.0)
        return np.where(values == base, 0.0, exact)  # large integers that differ count as changed by at least 1
    return _as_float(values) - _as_float(base)


def _as_float(values: Array) -> Array:
    return values if values.dtype.kind == "c" else values.astype("<f8", copy=False)
