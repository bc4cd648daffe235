"""Decides from the sizes of decoded matrices whether scales are inverse, squared, or those of other codes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise

from ...util.text import NUMBER_IN_KEY
from .kinds import HUGE, ZERO

__all__ = [
    "ALL_ROLES", "APART", "DECODED", "FEWEST", "INVERSE", "LARGE", "LAYER", "OF_SIZES", "POWER", "RISING", "SMALL",
    "USUAL", "powers_of", "unlike_other_layers",
]  # fmt: skip

LARGE, SMALL, USUAL = "large", "small", "usual"
"""The size classes of decoded matrices: above, below or within ``DECODED``. The parts of a matrix may have different
classes."""
INVERSE = "inverse"
"""The size class of a matrix whose factor is between ``RISING`` and the upper limit in ``DECODED``, if its codes are
larger where its scales are larger: this is so only for inverse scales."""
DECODED = (0.02, 50.0)
"""The smallest and the largest plausible factor by which a layer changes the size of its inputs, as a median.

The factor is the root mean square of the weights, times the square root of the number of inputs. Inverse scales make it
at least 30 in a network as narrow as MiniLM (384), and more in wider ones.
"""
RISING = 10.0
"""The smallest factor for which scales and codes are compared. The median of a healthy network is rarely larger."""
FEWEST = 4
"""The fewest decoded matrices for which a note can say that most of them are too large or too small."""
OF_SIZES = {
    LARGE: f"make outputs over {DECODED[1]:g} times as large as inputs",
    SMALL: f"make outputs less than {DECODED[0]:g} times as large as inputs",
    INVERSE: f"make outputs over {RISING:g} times as large as inputs, with larger codes for larger scales",
}
POWER = "2^"
"""The beginning of a kind such as ``2^1.5``, that of decoded matrices whose largest factor is this power of two."""
APART = 5
"""Matrices of one role whose factors differ by this power of two (32 times) do not belong to one network."""
SUSPECT = 3
"""Of factors of one role that differ by ``APART``, the larger ones are wrong if they are over this power of two (8)."""
LAYER = 3
"""If all matrices of a layer differ by this power of two (8 times) from those of all other layers, they are wrong."""
ALL_ROLES = 2
"""If the factors of all roles differ by this power of two (4 times) in two groups of layers, one of them is wrong."""


def powers_of(every: Iterable[Mapping[str, Collection[str]]]) -> dict[str, float]:
    """Return {name of a decoded matrix: binary logarithm of the largest factor by which its layer scales inputs}.

    ``every`` has names by kind; a kind such as ``2^1.5`` contains the logarithm.
    """
    found: dict[str, float] = {}
    for one in every:
        for kind, names in one.items():
            if kind.startswith(POWER):
                power = float(kind.removeprefix(POWER))
                found.update((name, max(power, found.get(name, power))) for name in names)
    return found


def unlike_other_layers(powers: Mapping[str, float], names: Mapping[str, Collection[str]]) -> tuple[set[str], set[str]]:
    """Return two sets of matrices: those far larger, and far smaller, than the same matrices of other layers.

    ``powers`` has the binary logarithm of the factor by which each matrix scales its inputs, ``names`` names by kind.
    The matrices of a role (name without numbers) are divided at the widest gap between their factors, if this gap is at
    least ``APART``. The larger ones are returned if their factors are too large for a network; otherwise the smaller
    ones if theirs are too small, except experts: an expert that is never chosen shrinks.
    """
    roles: dict[str, list[str]] = {}
    for name in powers:
        roles.setdefault(NUMBER_IN_KEY.sub("#", name), []).append(name)
    large, small = set[str](), set[str]()
    for some in roles.values():
        ordered = sorted(some, key=powers.__getitem__)
        gap, at = max(((powers[b] - powers[a], i) for i, (a, b) in enumerate(pairwise(ordered), 1)), default=(0.0, 0))
        if gap >= APART:
            if powers[ordered[at]] > SUSPECT:
                large.update(ordered[at:])
            elif 2.0 ** powers[ordered[at - 1]] < DECODED[0]:
                small.update(name for name in ordered[:at] if "expert" not in name)
    return large.difference(names[HUGE]), small.difference(names[ZERO])
