"""Decides from the means of decoded matrices whether zero points or biases are wrong."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping

from ...util.text import NUMBER_IN_KEY, percent
from .kinds import EXPLAIN, ROUNDED
from .sizes import FEWEST

__all__ = [
    "LEANING", "LEANS", "MOSTLY", "MOST_STEPS", "OFF_BY_ONE", "ONE_OFF", "ONE_STEP", "SHIFT", "SHIFTED", "STEPS",
    "UNCENTRED", "UNCLEAR", "WRONG_OFFSETS", "one_off_names", "shifted_names", "uncentred_names",
]  # fmt: skip

SHIFTED = {True: "shifted up", False: "shifted down"}
"""The kinds of matrices whose mean is far above 0, or far below 0, as if zero points were off by one."""
SHIFT, MOSTLY = 0.15, 0.75
"""A mean is far from 0 if it is more than the share ``SHIFT`` of the root mean square.

There is a note only if more than the share ``MOSTLY`` of the matrices have such a mean.
"""
UNCENTRED, LEANING = "uncentred", "leaning"
"""The kinds of matrices whose groups have means far from 0, of any sign.

If wrong zero points differ from group to group, some groups are shifted up and others down. So the mean of the matrix
may be near 0.
"""
LEANS = {UNCENTRED: 1.0, LEANING: 0.4}
"""{kind: a matrix has this kind if the median of |mean| / deviation of its groups is above this number}.

It is about 0.12 for 32 weights around 0 that are drawn independently, and about 2.4 if zero points of 4 bits are off by
half of the codes. Zero points that are off by one make it only 0.3, with one sign, and are found as ``SHIFTED``.
"""
ONE_OFF, UNCLEAR = "one off", "unclear shift"
"""The kinds of matrices whose weights are shifted by about one step between codes, or by an unclear number of steps."""
STEPS = {UNCLEAR: 0.35, ONE_OFF: 0.7}
"""{kind: a matrix has this kind if its shift, in steps, is above this number}.

If zero points are off by one, most shifts are between 0.9 and 1.2.
"""
MOST_STEPS = 1.4
"""A shift of more steps than this is of the kind ``UNCLEAR``, too."""
OFF_BY_ONE = (
    f"a mean of over {percent(SHIFT)} of their root mean square: perhaps the zero points or biases are wrong, such as "
    "zero points that are off by one (checkpoint_format gptq, gptq_v2)"
)
ONE_STEP = (
    "weights that are shifted by about one step between codes, unlike the same matrix of other layers: perhaps "
    "the zero points are off by one (GPTQ stores them less 1; gptq_v2 and AWQ as they are)"
)
WRONG_OFFSETS = (
    "weights that are not centred at 0: in most groups, the mean is larger than the standard deviation: perhaps "
    "the zero points or biases are wrong"
)


def shifted_names(names: Mapping[str, Collection[str]], number: int) -> set[str]:
    """Return the matrices whose mean is far from 0, if most matrices have such a mean, with the same sign.

    Otherwise the set is empty. It is also empty if packed words were rounded (``ROUNDED``), since this shifts weights,
    too. ``number`` is the number of all matrices. ``names`` has the names of matrices by kind; those with a kind in
    ``EXPLAIN`` are left out.
    """
    if names.get(ROUNDED):
        return set()
    for is_up, kind in SHIFTED.items():
        some = set(names[kind]) - set(names[SHIFTED[not is_up]])
        if number >= FEWEST and len(some) > MOSTLY * number:
            return some.difference(*(names.get(explains, ()) for explains in EXPLAIN))
    return set()


def uncentred_names(names: Mapping[str, Collection[str]], every: Collection[str]) -> set[str]:
    """Return the matrices whose groups have means far from 0, if these means show that their zero points are wrong.

    They show it if most matrices in ``every`` have such means. They also show it for a single matrix if other matrices
    have means near 0, and none of these others is ``LEANING`` or shifted. The others are:

    - the matrices of the same role (name without numbers) with means near 0, if there are at least ``SIBLINGS``;
    - or all matrices in ``every`` with means near 0, at least ``FEWEST``, if only one of the same role has such means;
    - or all matrices in ``every`` with means near 0, at least ``AROUND``, for a matrix that is alone in its role.

    ``names`` has the names of matrices by kind.
    """
    if names.get(ROUNDED):
        return set()
    some = set(names.get(UNCENTRED, ()))
    found = some if len(every) >= FEWEST and len(some) * 2 > len(every) else set[str]()
    if some and not found:
        roles: dict[str, set[str]] = {}
        for name in every:
            roles.setdefault(NUMBER_IN_KEY.sub("#", name), set()).add(name)
        leaning = set(names.get(LEANING, ())).union(*(names.get(kind, ()) for kind in SHIFTED.values()))
        for role in roles.values():
            others, fewest = role - some, AROUND if len(role) == 1 else FEWEST
            is_compared = bool(others) or len(role) == 1
            if _are_centred(others, leaning, SIBLINGS) or (
                is_compared and _are_centred(set(every) - some, leaning, fewest)
            ):
                found |= role & some
    return found.difference(*(names.get(kind, ()) for kind in EXPLAIN))


def one_off_names(names: Mapping[str, Collection[str]], every: Iterable[str]) -> set[str]:
    """Return the matrices that are shifted by one step, if at least ``UNSHIFTED`` of the same role are not shifted.

    A role is a name without numbers. If the shift of a matrix is unclear, no matrix of its role is returned. ``names``
    has the names of matrices by kind.
    """
    some, unclear = set(names.get(ONE_OFF, ())), set(names.get(UNCLEAR, ()))
    roles: dict[str, set[str]] = {}
    for name in every if some else ():
        roles.setdefault(NUMBER_IN_KEY.sub("#", name), set()).add(name)
    found = (role & some for role in roles.values() if len(role - some) >= UNSHIFTED and not role & unclear)
    return set().union(*found)


UNSHIFTED = 3
"""The shifted matrices of a role are wrong if at least this many matrices of the role are not shifted."""
SIBLINGS = 2
"""The matrices of a role whose groups are not around 0 are wrong if the groups of at least this many others are.

One such other matrix is enough in a model of two layers if all matrices of other roles have groups around 0, too.
"""
AROUND = 8
"""A matrix that is alone in its role is wrong if at least this many other matrices have groups around 0."""


def _are_centred(others: Collection[str], leaning: Container[str], fewest: int) -> bool:
    """Return whether ``others`` has at least ``fewest`` matrices, and none of them is in ``leaning``.

    ``leaning`` are the matrices whose groups do not have means near 0.
    """
    return len(others) >= fewest and not any(one in leaning for one in others)
