"""Decides from the largest codes of groups whether scales belong to other codes, or were rounded after encoding.

A scale is the largest weight of its group, divided by the largest possible code. So the largest code of nearly every
group is the largest possible one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

__all__ = ["ENDS", "MOVED", "OF_POWERS", "ROUNDED_UP", "moved_codes", "rounded_scales"]

ENDS, OF_POWERS = "ends^", "ends of powers^"
"""The beginnings of kinds such as ``ends^63/64``: in 63 of 64 groups, a code is the largest possible one.

The second is used if all scales are powers of two. It is followed by the smallest and the largest exponent: ``ends of
powers^-9:-7^63/64``.
"""
FEWEST, ALL, SOME, LACKING = 16, 0.99, 0.92, 6
"""Codes of a tensor were moved between groups if too few of its groups reach the largest possible code.

Of at least ``FEWEST`` groups, less than the share ``SOME`` must have this code, and at least ``LACKING`` must lack it.
In enough other tensors, at least the share ``ALL`` of the groups must have it. Experts are left out: the weights of an
expert that is never chosen may become so small that their scales have a lower bound.
"""
OTHERS, THIRD = 4, 1 / 3
"""At least ``OTHERS`` tensors, and the share ``THIRD`` of all, must have the largest code in nearly every group."""
MANY, MOSTLY = 16, 0.75
"""Scales were rounded to powers of two if too many groups reach the largest possible code.

More than the share ``MOSTLY`` of at least ``MANY`` groups must reach it, and the scales must differ. If codes are made
with such scales, 5 % of the groups reach it (scales rounded up), or 20 % (rounded down), but more if all groups have
the same scale.
"""
MOVED = (
    "groups without the largest code, unlike other tensors of the model: perhaps the codes belong to other scales, or "
    "were transposed without them"
)
ROUNDED_UP = (
    "scales that are powers of two, although nearly every group has the largest code: perhaps the scales were rounded, "
    "and the codes not made again"
)


def moved_codes(every: Iterable[Mapping[str, Collection[str]]]) -> set[str]:
    """Return the tensors whose codes seem to have been moved to other groups after their scales were made.

    Each map in ``every`` has names of tensors by kind. A kind such as ``ends^63/64`` contains the numbers that were
    measured for the tensor.
    """
    found = {name: one for name, one in _measured(every, ENDS).items() if one[1] >= FEWEST}
    if sum(reached >= ALL * number for reached, number in found.values()) < max(OTHERS, THIRD * len(found)):
        return set()
    return {
        name
        for name, (reached, number) in found.items()
        if reached < SOME * number and number - reached >= LACKING and "expert" not in name
    }


def rounded_scales(every: Iterable[Mapping[str, Collection[str]]]) -> set[str]:
    """Return the tensors whose scales seem to be rounded to powers of two after the codes were made."""
    maps = list(every)
    found = _measured(maps, OF_POWERS)
    reached, number = (sum(one[at] for one in found.values()) for at in (0, 1))
    ends = [kind.split("^")[1].split(":") for one in maps for kind in one if kind.startswith(OF_POWERS)]
    is_varied = len({int(one) for pair in ends for one in pair}) > 1
    return set(found) if is_varied and number >= MANY and reached > MOSTLY * number else set()


def _measured(every: Iterable[Mapping[str, Collection[str]]], kind: str) -> dict[str, tuple[int, int]]:
    """Return {name of a tensor: (number of groups that reach the largest code, number of all groups)}."""
    found: dict[str, tuple[int, int]] = {}
    for one in every:
        for measured, names in one.items():
            if measured.startswith(kind):
                reached, number = map(int, measured.rpartition("^")[2].split("/"))
                for name in names:
                    old = found.get(name, (0, 0))
                    found[name] = old[0] + reached, old[1] + number
    return found
