"""Makes rows of new tokens from rows of tokens that source and donor share, by orthogonal matching pursuit.

The donor's row of a new token is nearly a weighted sum of the donor's rows of shared tokens; the same sum of the
source's rows is the new row (https://arxiv.org/abs/2506.06607).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from threading import Lock

import numpy as np

from ...errors import PlanError
from ...methods.matching_pursuit import sparse_sums
from ...planning.plan.rows import DonorRows, VocabularyRows
from ...planning.plan.step import Step
from ...tensors.composition import merged_runs
from ...tensors.ops.casts import CastLosses, cast
from ...tensors.ops.means import rounded
from ...tensors.ops.regions import Array
from .reading import Blockwise, OutputBlock, Part, Seen, cast_for, read_part
from .rows import mapped_block

__all__ = [
    "PURSUIT_BLOCKS",
    "is_pursuit",
    "keeps_shared_rows",
    "pursuing_of",
    "pursuit_bytes",
    "pursuit_passes",
]

BASIS_BYTES = 128 << 20
"""The most bytes that the basis vectors, in double precision, of all tokens that are computed together may take."""
TOGETHER = 256
"""The most new tokens that are computed together."""
BAND_BYTES, BAND_ROWS = 16 << 20, 8192
"""The largest size and the largest number of rows of the donor that are read at once.

The size is that of the rows in single precision, in bytes.
"""
PURSUIT_BLOCKS = 4 << 20
"""The bytes of the block of the output that is computed, and of what it is computed from."""
ARRAYS = 6
"""How many arrays in double precision are in memory at once, each with a row for each of the tokens in a group."""


def is_pursuit(step: Step) -> bool:
    """Return whether a step makes rows of new tokens from the rows of a donor."""
    return step.op == "map" and step.rows is not None and step.rows.donor is not None and bool(step.more)


def pursuit_bytes(step: Step) -> tuple[int, int]:
    """Return two sizes in bytes: the memory for computing new rows, and the donor's rows of shared tokens."""
    rows, donor = _rows(step)
    width, own = step.more[0].shape[1], prod(step.shape[1:])
    number = _together(donor.picks, width)
    picks = min(donor.picks, width)
    vectors = number * 8 * ((picks + ARRAYS) * width + picks * picks + 2 * own) + picks * own * 8
    band = min(BAND_BYTES // (4 * width) + 1, BAND_ROWS)
    return vectors + band * width * 8 + 2 * number * band * 4, len(donor.shared(rows)) * width * 4


def keeps_shared_rows(step: Step, memory: int) -> bool:
    """Return whether the donor's rows of shared tokens stay in memory, which they do if ``memory`` is large enough."""
    return sum(pursuit_bytes(step)) + PURSUIT_BLOCKS <= memory


def pursuit_passes(step: Step, memory: int) -> int:
    """Return the largest number of times that the donor's rows are read.

    They are read twice if the rows of shared tokens stay in memory. Otherwise, the new tokens are divided into groups
    that are computed together: for each group, the rows are read again for each term of the sums.
    """
    rows, donor = _rows(step)
    if keeps_shared_rows(step, memory):
        return 2
    width = step.more[0].shape[1]
    return 1 + min(donor.picks, width) * -(-len(donor.wanted(rows)) // _together(donor.picks, width))


def _together(picks: int, width: int) -> int:
    picks = min(picks, width)
    return max(1, min(TOGETHER, BASIS_BYTES // (8 * picks * (width + picks))))


def _rows(step: Step) -> tuple[VocabularyRows, DonorRows]:
    assert step.rows is not None
    assert step.rows.donor is not None  # ensured by check_step
    return step.rows, step.rows.donor


def pursuing_of(step: Step, parts: Sequence[Part], memory: int) -> Blockwise:
    """Return a function that computes a block of an embedding whose new rows are made from the rows of a donor.

    ``parts`` are the embeddings of the source and of the donor. The donor's rows of shared tokens stay in memory if
    all fits into ``memory``; otherwise, they are read again for each term of the sums.
    """
    rows, donor = _rows(step)
    (info, source), theirs = parts
    pairs = donor.shared(rows)
    atoms = _SharedRows(theirs, [place for place, _ in pairs], keeps=keeps_shared_rows(step, memory))
    made = _NewRows(rows, donor, atoms, theirs, (info, source), [row for _, row in pairs])

    def block(place: OutputBlock, seen: Seen | None = None) -> tuple[Array, CastLosses]:
        values = mapped_block(step, info, source, place.box)
        begin, end = place.box[0]
        for row in made.within(begin, end):
            values[row - begin] = rounded(made.row(row), "float64", info.dtype)[0][slice(*place.box[1])]
        return cast_for(step, values, info.dtype)

    return block


@dataclass
class _SharedRows:
    """The rows of the donor with the indices ``places``, which are in ascending order.

    If ``keeps`` is false, the rows are not kept in memory, but read whenever they are needed.
    """

    part: Part
    places: list[int]
    keeps: bool

    def bands(self) -> Iterator[tuple[int, Array]]:
        """Yield ranges of the rows as float32, each with the index of its first row."""
        if self.keeps:
            yield from self._kept
        else:
            yield from self._read()

    @cached_property
    def _kept(self) -> list[tuple[int, Array]]:
        return list(self._read())

    def _read(self) -> Iterator[tuple[int, Array]]:
        info, source = self.part
        each = min(BAND_BYTES // (4 * info.shape[1]) + 1, BAND_ROWS)
        at = 0
        while at < len(self.places):
            low = self.places[at]
            end = at
            while end < len(self.places) and self.places[end] < low + each:
                end += 1
            values = read_part(source, info, ((low, self.places[end - 1] + 1), (0, info.shape[1])))
            own = values[[place - low for place in self.places[at:end]]]
            yield at, cast(own, info.dtype, "float32")[0]
            at = end

    def rows(self, indices: Sequence[int]) -> Array:
        """Return the rows as float64; ``indices`` are their indices in ``places``."""
        return _read_rows(self.part, [self.places[index] for index in indices])


def _read_rows(part: Part, places: Sequence[int]) -> Array:
    """Return rows of a matrix, in the given order, as float64."""
    info, source = part
    distinct = sorted(set(places))
    runs = merged_runs([(place, place + 1) for place in distinct])
    found = np.concatenate([read_part(source, info, (run, (0, info.shape[1]))) for run in runs])
    return cast(found, info.dtype, "float64")[0][np.searchsorted(distinct, places)]


@dataclass
class _NewRows:
    """The rows of new tokens, which are computed in fixed groups: always the same rows together.

    So their values do not depend on the number of threads and processes. ``atoms`` are the donor's rows of the shared
    tokens, ``bases`` the indices of the source's rows of the same tokens. ``theirs`` is the embedding of the donor,
    ``source`` the embedding of the source.
    """

    rows: VocabularyRows
    donor: DonorRows
    atoms: _SharedRows
    theirs: Part
    source: Part
    bases: list[int]
    _made: dict[int, Array] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def _wanted(self) -> dict[int, int]:
        """{row of the output: index among the new rows} for the rows of new tokens."""
        return {row: place for place, row in enumerate(self.donor.wanted(self.rows))}

    def within(self, begin: int, end: int) -> list[int]:
        """Return the indices of the rows from ``begin`` to before ``end`` that are made here."""
        return [row for row in range(begin, end) if row in self._wanted]

    def row(self, row: int) -> Array:
        """Return a new row as float64; each row can be returned only once."""
        with self._lock:
            if row not in self._made:
                self._make(self._wanted[row])
            return self._made.pop(row)

    def _make(self, place: int) -> None:
        each = _together(self.donor.picks, self.theirs[0].shape[1])
        first = place // each * each
        wanted = list(self._wanted)[first : first + each]
        vectors = _read_rows(self.theirs, [self.donor.place(row) for row in wanted])
        if not np.isfinite(vectors).all():
            raise _not_finite("the donor's rows of new tokens")
        taken, weights = sparse_sums(vectors, self.atoms, self.donor.picks)
        for row, own, factors in zip(wanted, taken, weights, strict=True):
            own, factors = own[own >= 0], factors[own >= 0]
            if not len(own):
                self._made[row] = np.zeros(self.source[0].shape[1])
                continue
            made = factors @ _read_rows(self.source, [self.bases[index] for index in own])
            if not np.isfinite(made).all():
                raise _not_finite("the rows of shared tokens")
            self._made[row] = made


def _not_finite(what: str) -> PlanError:
    return PlanError(
        f"{what} contain NaN or infinite values, so no sum of them can be computed.",
        hint="Find these values with ckpt check.",
    )
