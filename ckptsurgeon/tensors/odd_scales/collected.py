"""Collects the names of quantised tensors with odd scales, while parts of them are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log2

from ...util.text import natural_key
from .averaged_words import SPREAD
from .group_codes import ASYMMETRIC, SYMMETRIC, UNFIT
from .group_ends import ENDS, OF_POWERS
from .kinds import SAID
from .notes import KINDS, odd_scale_notes
from .shifted import LEANS, MOST_STEPS, ONE_OFF, STEPS, UNCLEAR
from .sizes import DECODED, INVERSE, LARGE, POWER, RISING, SMALL, USUAL

__all__ = ["OddScales"]


class OddScales:
    """The names of quantised tensors, by kind of odd scales and by size of the decoded matrix. Threads may share it.

    A size is ``LARGE``, ``SMALL``, ``USUAL`` or ``INVERSE``. In addition, a matrix has the kind of its power of two
    (see ``POWER``).
    """

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
        self._powers: dict[str, list[float]] = {}
        self._leans: dict[str, float] = {}
        self._shifts: dict[str, float] = {}
        self._spreads: dict[str, list[float]] = {}
        self._ends: dict[str, list[tuple[int, int, tuple[int, int] | None]]] = {}

    def add(self, kind: str, name: str) -> None:
        """Record the tensor ``name`` under ``kind``, a kind of odd scales or a size class."""
        self.names[kind][name] = None

    def add_size(self, name: str, factor: float, is_inverse: Callable[[], bool]) -> None:
        """Record the size class of a matrix; its layer makes outputs that are ``factor`` times as large as its inputs.

        ``is_inverse`` compares codes with scales; it is called only for factors that are large for a network.
        """
        low, high = DECODED
        if RISING < factor <= high and name not in self.names[USUAL] and is_inverse():
            self.add(INVERSE, name)
        else:
            self.add(SMALL if factor < low else LARGE if factor > high else USUAL, name)
        self._powers.setdefault(name, []).append(log2(factor))

    def add_lean(self, name: str, lean: float) -> None:
        """Record the median of |mean| / deviation of the groups in a part of a matrix.

        Of all parts of a matrix, the smallest median counts.
        """
        self._leans[name] = min(lean, self._leans.get(name, lean))

    def add_shift(self, name: str, steps: float) -> None:
        """Record how many code steps a part of a matrix is shifted; of all parts, the largest shift counts."""
        self._shifts[name] = max(steps, self._shifts.get(name, 0.0), key=abs)

    def add_spread(self, name: str, spread: float) -> None:
        """Record by how much the spread of the highest codes of words differs from that of the others in a part.

        ``spread_of_highest`` in ``decoders`` measures it.
        """
        self._spreads.setdefault(name, []).append(spread)

    def add_ends(self, name: str, reached: int, number: int, powers: tuple[int, int] | None) -> None:
        """Record that the largest code is the largest possible one in ``reached`` of ``number`` groups of a part.

        ``powers`` are the smallest and the largest exponent of the scales if all are powers of two.
        """
        self._ends.setdefault(name, []).append((reached, number, powers))

    def add_all_but_sizes(self, other: OddScales) -> None:
        """Record what ``other`` has recorded, except sizes: ``other`` is about embeddings, which have other sizes."""
        for kind in (*SAID, UNFIT, ASYMMETRIC, SYMMETRIC):
            self.names[kind] |= other.names[kind]
        self._leans |= other._leans
        self._spreads |= other._spreads
        self._ends |= other._ends

    def __bool__(self) -> bool:
        return any(self.names.values())

    def of(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return {kind of odd scales, or size class: names of tensors}; only names in ``names`` are returned."""
        some = set(names)
        return {kind: sorted(some & own.keys(), key=natural_key) for kind, own in self._kinds().items()}

    def notes(self, path: str) -> tuple[str, ...]:
        """Return notes on all recorded tensors; ``path`` is the path of their checkpoint."""
        return tuple(odd_scale_notes([{path: {kind: [*names] for kind, names in self._kinds().items()}}]))

    def _kinds(self) -> dict[str, dict[str, None]]:
        """Return the names by kind.

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
        for kind, limit in LEANS.items():
            found[kind] = {name: None for name, lean in self._leans.items() if lean > limit}
        shifts = {name: abs(shift) for name, shift in self._shifts.items()}
        one = {name: None for name, shift in shifts.items() if STEPS[ONE_OFF] < shift < MOST_STEPS}
        unclear = {name: None for name, shift in shifts.items() if shift > STEPS[UNCLEAR] and name not in one}
        return {**found, ONE_OFF: one, UNCLEAR: unclear}
