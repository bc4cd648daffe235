"""Decides from the sizes of decoded matrices whether scales are inverse or squared, or belong to other codes."""

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
"""The size class of a matrix in which blocks with larger scales have larger codes: only inverse scales cause this.

Its factor is between ``RISING`` and the upper limit in ``DECODED``.
"""
DECODED = (0.02, 50.0)
"""The smallest and the largest plausible median of the factor between the sizes of inputs and outputs of a layer.

The factor is the root mean square of the weights, times the square root of the number of inputs. Inverse scales make it
at least 30 in a network as narrow as MiniLM (384), and more in wider ones.
"""
RISING = 10.0
"""For smaller factors, scales and codes are not compared. The median of a healthy network is rarely larger."""
FEWEST = 4
"""A note that most decoded matrices are too large or too small needs at least this many matrices."""
OF_SIZES = {
    LARGE: f"make outputs over {DECODED[1]:g} times as large as inputs",
    SMALL: f"make outputs less than {DECODED[0]:g} times as large as inputs",
    INVERSE: f"make outputs over {RISING:g} times as large as inputs, with larger codes for larger scales",
}
POWER = "2^"
"""The beginning of kinds such as ``2^1.5``: of all parts of such a matrix, 2**1.5 is the largest factor."""
APART = 5
"""If factors of one role differ by 2**APART (32), the matrices do not belong to one network."""
SUSPECT = 3
"""If factors of one role differ by 2**APART, the larger ones are wrong if they are over 2**SUSPECT (8)."""
LAYER = 3
"""If all matrices of a layer differ by the factor 2**LAYER (8) from the same matrices elsewhere, they are wrong."""
ALL_ROLES = 2
"""If the factors of all roles differ by 2**ALL_ROLES (4) between two groups of layers, one of the groups is wrong."""


def powers_of(every: Iterable[Mapping[str, Collection[str]]]) -> dict[str, float]:
    """Return {name of a decoded matrix: binary logarithm of its largest factor (size of outputs / size of inputs)}.

    ``every`` has names by kind; a kind such as ``2^1.5`` contains the logarithm, 1.5.
    """
    found: dict[str, float] = {}
    for one in every:
        for kind, names in one.items():
            if kind.startswith(POWER):
                power = float(kind.removeprefix(POWER))
                found.update((name, max(power, found.get(name, power))) for name in names)
    return found


def unlike_other_layers(powers: Mapping[str, float], names: Mapping[str, Collection[str]]) -> tuple[set[str], set[str]]:
    """Return two sets of matrices: far larger, and far smaller, than the same matrices of other layers.

    ``powers`` has, for each matrix, the binary logarithm of the factor between its outputs and inputs; ``names`` has
    the names by kind. The matrices of each role (name without numbers) are divided into two groups at the widest gap
    between their factors, if this gap is at least ``APART``. If the factors above the gap are too large for a network,
    the matrices above it are returned. Otherwise, if the factors below the gap are too small, the matrices below it are
    returned, except experts: an expert that is never chosen shrinks.
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
