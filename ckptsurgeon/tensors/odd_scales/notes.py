"""Makes notes on quantised tensors with implausible scales, zero points or codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from math import log2
from typing import TypeAlias

from ...util.note_kind import NoteKind
from ...util.notes import Note, notes_of
from ...util.text import count, escape, listing, natural_key
from .averaged_words import AVERAGED, SPREAD, averaged_names
from .group_codes import ASYMMETRIC, LOST_ZEROS, SYMMETRIC, UNFIT, UNFIT_ZEROS, lost_zero_points, unfit_zero_points
from .group_ends import ENDS, MOVED, OF_POWERS, ROUNDED_UP, moved_codes, rounded_scales
from .kinds import EXPLAIN, HUGE, SAID, ZERO, ZERO_BLOCKS
from .layer_groups import larger_layers, outlying_layers
from .shifted import (
    LEANS,
    MOST_STEPS,
    OFF_BY_ONE,
    ONE_OFF,
    ONE_STEP,
    SHIFTED,
    STEPS,
    UNCENTRED,
    UNCLEAR,
    WRONG_OFFSETS,
    one_off_names,
    shifted_names,
    uncentred_names,
)
from .sizes import (
    ALL_ROLES,
    APART,
    DECODED,
    FEWEST,
    INVERSE,
    LARGE,
    LAYER,
    OF_SIZES,
    POWER,
    RISING,
    SMALL,
    USUAL,
    powers_of,
    unlike_other_layers,
)
from .stray_signs import CHOSEN, SIGNS, STRAY, stray_signs

__all__ = ["KINDS", "Found", "OddScales", "odd_scale_notes"]

KINDS = (
    *SAID,
    UNFIT,
    ASYMMETRIC,
    SYMMETRIC,
    ZERO_BLOCKS,
    LARGE,
    SMALL,
    USUAL,
    INVERSE,
    *SHIFTED.values(),
    *LEANS,
    *STEPS,
    CHOSEN,
)
SHOWN = 3
"""The largest number of names in a note."""

Found: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""{path of a checkpoint: {kind of implausible scales, or size class: names of quantised tensors}}."""


@notes_of(NoteKind.WRONG_WEIGHTS)
def odd_scale_notes(found: Iterable[Found]) -> Iterator[str]:
    """Yield notes on the tensors in ``found``: one for each checkpoint and each kind of implausible scales in it.

    There are also notes on the sizes of decoded matrices: if most of them are too large or too small, or if some are
    far larger or smaller than the same matrices of other layers. If all matrices of a layer are larger, or all are
    smaller, a smaller difference is enough. The names of one checkpoint may be in several items of ``found``.
    """
    every = list(found)
    for path in dict.fromkeys(path for one in every for path in one):
        names = {kind: {name for one in every for name in one.get(path, {}).get(kind, ())} for kind in KINDS}
        names[ZERO] |= names[ZERO_BLOCKS] - names[LARGE] - names[SMALL] - names[USUAL] - names[INVERSE]
        own = [one[path] for one in every if path in one]
        averaged = averaged_names(own)
        unfit = unfit_zero_points(names, [averaged, *(names[kind] for kind in EXPLAIN)])
        for some, said in (
            *((names[kind], said) for kind, said in SAID.items()),
            (averaged, AVERAGED), (lost_zero_points(names), LOST_ZEROS), (unfit, UNFIT_ZEROS),
            (moved_codes(own), MOVED), (rounded_scales(own), ROUNDED_UP), (stray_signs(own), STRAY),
        ):  # fmt: skip
            if some:
                have = f"{count(len(some), 'quantised tensor')} {'has' if len(some) == 1 else 'have'}"
                kind = said.kind if isinstance(said, Note) else NoteKind.WRONG_WEIGHTS
                yield Note(kind, f"{escape(path)}: {have} {said}: {_listed(some)}")
        yield from _on_sizes(path, names)
        powers = powers_of(own)
        if shifted := shifted_names(names, len(powers)):
            yield f"{escape(path)}: {_of_matrices(shifted, powers)} {OFF_BY_ONE}: {_listed(shifted)}"
        matrices = {*powers, *names[UNCENTRED]}
        if uncentred := uncentred_names(names, matrices) - shifted:
            yield (f"{escape(path)}: {_of_matrices(uncentred, matrices)} {WRONG_OFFSETS}: {_listed(uncentred)}")
        if one_off := one_off_names(names, powers) - shifted - uncentred:
            yield f"{escape(path)}: {_of_matrices(one_off, matrices)} {ONE_STEP}: {_listed(one_off)}"
        large, small = unlike_other_layers(powers, names)
        for unlike, as_large in ((large, f"at least {1 << APART} times"), (small, f"at most 1/{1 << APART}")):
            if unlike:
                number = count(len(unlike), "decoded matrix", "decoded matrices")
                are, of_others = ("is", "that") if len(unlike) == 1 else ("are", "those")
                yield (
                    f"{escape(path)}: {number} {are} {as_large} as large as {of_others} of other layers: the scales "
                    f"may be those of other codes, or may never have been set: {_listed(unlike)}"
                )
        groups = larger_layers(powers, ALL_ROLES) if not (large or small) else []
        if groups:
            yield (
                f"{escape(path)}: {len(groups)} of {len(powers)} decoded matrices, those of every kind in some layers, "
                f"are at least {1 << ALL_ROLES} times as large as those of the other layers: the scales of these "
                f"layers, or of the others, may be those of another model: {_listed(groups)}"
            )
        elif not (large or small):
            yield from _on_single_layers(path, powers)


def _of_matrices(some: Sized, every: Sized) -> str:
    """Return "1 of 6 decoded matrices has" or "2 of 6 decoded matrices have"."""
    return f"{len(some)} of {len(every)} decoded matrices {'has' if len(some) == 1 else 'have'}"


def _on_single_layers(path: str, powers: Mapping[str, float]) -> Iterator[str]:
    """Yield notes on layers whose matrices are all far larger, or all far smaller, than in the other layers."""
    for names, as_large in zip(
        outlying_layers(powers, LAYER), (f"over {1 << LAYER} times", f"less than 1/{1 << LAYER}"), strict=True
    ):
        if names:
            yield (
                f"{escape(path)}: {count(len(names), 'decoded matrix', 'decoded matrices')}, all that were checked "
                f"in their layers, are {as_large} as large as those of other layers: the scales of these layers may be "
                f"squared, or those of another model: {_listed(names)}"
            )


def _on_sizes(path: str, names: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield a note if more than half of the decoded matrices are far too large, or far too small, for a network."""
    large = names[LARGE] | names[INVERSE]
    every = large | names[SMALL] | names[USUAL]
    for size, found, other in ((LARGE, large, names[SMALL]), (SMALL, names[SMALL], large)):
        alike = found - other - names[USUAL]
        if len(every) >= FEWEST and len(alike) * 2 > len(every) and not alike <= names[HUGE] | names[ZERO]:
            said = OF_SIZES[INVERSE if alike & names[INVERSE] else size]
            yield (
                f"{escape(path)}: {len(alike)} of {count(len(every), 'decoded matrix', 'decoded matrices')} "
                f"{said}: the scales may be inverse (1/scale) or squared, or belong to other codes: {_listed(alike)}"
            )


def _listed(names: Iterable[str]) -> str:
    return listing(sorted(names, key=natural_key), SHOWN)


class OddScales:
    """The names of quantised tensors, by kind of implausible scales and by size class; safe with several threads.

    A size class is ``LARGE``, ``SMALL``, ``USUAL`` or ``INVERSE``. In addition, each matrix has a kind with a power of
    two, the factor between the sizes of its inputs and outputs (see ``POWER``).
    """

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
        self._powers: dict[str, list[float]] = {}
        self._leans: dict[str, float] = {}
        self._shifts: dict[str, float] = {}
        self._spreads: dict[str, list[float]] = {}
        self._ends: dict[str, list[tuple[int, int, tuple[int, int] | None]]] = {}
        self._signs: dict[str, list[tuple[int, int]]] = {}

    def add(self, kind: str, name: str) -> None:
        """Record the tensor ``name`` under ``kind``, a kind of implausible scales or a size class."""
        self.names[kind][name] = None

    def add_size(self, name: str, factor: float, is_inverse: Callable[[], bool]) -> None:
        """Record the size class of a matrix; its outputs are ``factor`` times as large as its inputs.

        ``is_inverse`` compares codes with scales; it is called only for factors that are large for a network.
        """
        low, high = DECODED
        if RISING < factor <= high and name not in self.names[USUAL] and is_inverse():
            self.add(INVERSE, name)
        else:
            self.add(SMALL if factor < low else LARGE if factor > high else USUAL, name)
        self._powers.setdefault(name, []).append(log2(factor))

    def add_lean(self, name: str, lean: float) -> None:
        """Record the median of |mean| / deviation over the groups in a part of a matrix.

        If a matrix has several parts, the smallest median counts.
        """
        self._leans[name] = min(lean, self._leans.get(name, lean))

    def add_shift(self, name: str, steps: float) -> None:
        """Record the shift of a part of a matrix, in steps between codes; the largest shift of all parts counts."""
        self._shifts[name] = max(steps, self._shifts.get(name, 0.0), key=abs)

    def add_spread(self, name: str, spread: float) -> None:
        """Record the difference in spread between the highest code of words and the other codes, in a part of a matrix.

        ``spread_of_highest`` in ``decoders`` measures it.
        """
        self._spreads.setdefault(name, []).append(spread)

    def add_ends(self, name: str, reached: int, number: int, powers: tuple[int, int] | None) -> None:
        """Record that ``reached`` of ``number`` groups in a part of a matrix contain the largest possible code.

        If all scales are powers of two, ``powers`` has their smallest and their largest exponent.
        """
        self._ends.setdefault(name, []).append((reached, number, powers))

    def add_signs(self, name: str, below: int, number: int) -> None:
        """Record that ``below`` of ``number`` scales in a part of a matrix are negative."""
        self._signs.setdefault(name, []).append((below, number))

    def add_all_but_sizes(self, other: OddScales) -> None:
        """Add the records of ``other``, which is about embeddings, except sizes and shifts: these differ there."""
        for kind in (*SAID, UNFIT, ASYMMETRIC, SYMMETRIC, CHOSEN):
            self.names[kind] |= other.names[kind]
        self._leans |= other._leans
        self._spreads |= other._spreads
        self._ends |= other._ends
        self._signs |= other._signs

    def __bool__(self) -> bool:
        return any(self.names.values())

    def of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return {kind of implausible scales, or size class: names of tensors}, only for names in ``names``."""
        some = set(names)
        return {kind: sorted(some & own.keys(), key=natural_key) for kind, own in self._kinds().items()}

    def notes(self, path: str) -> tuple[Note, ...]:
        """Return notes on all recorded tensors; ``path`` is the path of their checkpoint."""
        return tuple(odd_scale_notes([{path: {kind: [*names] for kind, names in self._kinds().items()}}]))

    def _kinds(self) -> dict[str, dict[str, None]]:
        """Return {kind: names}.

        Some kinds contain the number that was measured for a matrix: its power of two (``POWER``), its ``SPREAD``.
        """
        found = dict(self.names)
        for name, powers in self._powers.items():
            found.setdefault(f"{POWER}{max(powers)!r}", {})[name] = None
        for name, spreads in self._spreads.items():
            found.setdefault(f"{SPREAD}{sum(spreads) / len(spreads)!r}", {})[name] = None
        for name, some in self._ends.items():
            reached, number = sum(one for one, _, _ in some), sum(one for _, one, _ in some)
            exponents = [one for *_, powers in some if powers for one in powers]
            are_powers = all(powers for *_, powers in some)
            kind = f"{OF_POWERS}{min(exponents)}:{max(exponents)}^" if are_powers else ENDS
            found.setdefault(f"{kind}{reached}/{number}", {})[name] = None
        for name, counted in self._signs.items():
            if below := sum(one for one, _ in counted):
                found.setdefault(f"{SIGNS}{below}/{sum(one for _, one in counted)}", {})[name] = None
        for kind, limit in LEANS.items():
            found[kind] = {name: None for name, lean in self._leans.items() if lean > limit}
        shifts = {name: abs(shift) for name, shift in self._shifts.items()}
        one = {name: None for name, shift in shifts.items() if STEPS[ONE_OFF] < shift < MOST_STEPS}
        unclear = {name: None for name, shift in shifts.items() if shift > STEPS[UNCLEAR] and name not in one}
        return {**found, ONE_OFF: one, UNCLEAR: unclear}
