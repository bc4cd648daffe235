"""Collects the names of quantised tensors with odd scales or zero points, and makes notes on them.

Scales and zero points are odd if no quantisation method writes them, such as negative scales.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import pairwise
from math import log2
from typing import TypeAlias

from ..util.text import NUMBER_IN_KEY, count, escape, listing, natural_key, percent
from .averaged_words import AVERAGED, SPREAD, averaged_names
from .group_codes import ASYMMETRIC, LOST_ZEROS, SYMMETRIC, UNFIT, UNFIT_ZEROS, lost_zero_points, unfit_zero_points
from .layer_groups import larger_layers, outlying_layers

__all__ = [
    "APART", "CLIPPED", "DECODED", "EXCHANGED", "EXPLAIN", "FEWEST", "HUGE", "INVERSE", "LARGE", "LAYER", "LEANING",
    "NARROW", "NEGATED", "NEGATIVE", "NESTED", "NO_OFFSET", "OFF_BY_ONE", "OF_SIZES", "ONE_OFF", "ONE_STEP", "OPPOSED",
    "RISING", "ROUNDED", "SAID", "SHIFT", "SHIFTED", "SIGNED_CODES", "SMALL", "UNCENTRED", "UNCLEAR", "UNSET", "USUAL",
    "WRONG_OFFSETS", "ZERO", "ZERO_BLOCKS", "OddScales", "odd_scale_notes", "one_off_names", "powers_of",
    "shifted_names", "uncentred_names", "unlike_other_layers",
]  # fmt: skip

ZERO, NEGATIVE, HUGE, NO_OFFSET = "zero", "negative", "huge", "no offset"
"""The kinds of odd scales: 0, negative, too large. The last kind is zero points or biases that are all 0."""
NEGATED, EXCHANGED, OPPOSED, NARROW, NESTED, UNSET = "negated", "exchanged", "opposed", "narrow", "nested", "unset"
SIGNED_CODES, CLIPPED, ROUNDED = "signed codes", "clipped", "rounded"
"""Further kinds: scales that are all negative; MLX's scales in place of its biases; MLX's scales with the sign of its
biases; MLX's scales that are too small for its biases; second-level scales (double quantisation) that are 0; scales of
bitsandbytes, the largest weights of blocks, that are all 1; codes of which most are at the ends of their range;
codes of which too many are the lowest or the highest one; packed words without their lowest bits."""
SAID = {
    ZERO: "scales of 0 for codes that are not zero, so that these weights become 0",
    HUGE: "scales that make weights larger than 10,000: perhaps they are inverse scales, or those of another layer",
    NO_OFFSET: "zero points or biases that are all 0, so that none of these weights is negative",
    NEGATIVE: "negative scales, which the encoding does not have, so that these weights change their sign",
    NEGATED: "scales that are all negative: perhaps their signs were changed",
    EXCHANGED: "scales that are larger than their biases: perhaps scales and biases are swapped",
    OPPOSED: "scales with the sign of their biases: perhaps the signs of the scales, or of the biases, were changed",
    NARROW: "scales so small next to their biases that the weights of a group hardly differ: perhaps they belong "
    "to codes of more bits",
    UNSET: "scales that are all exactly 1: perhaps they were never set",
    SIGNED_CODES: "codes with peaks at both ends of their range and few in its middle: perhaps they are in two's "
    "complement, without the offset that is subtracted from codes",
    CLIPPED: "codes of which the lowest and the highest are far more frequent than those next to them: perhaps larger "
    "weights were clipped, because the scales were too small when the codes were made",
    ROUNDED: "packed words whose lowest code is nearly always 0, unlike their other codes: were the packed words cast "
    "to a floating-point dtype and back?",
    NESTED: "scales of scales that are all 0, so that all blocks have the same scale",
}
ZERO_BLOCKS = "zero blocks"
"""The kind of a part of a GGUF tensor in which all scales are 0, for codes that differ.

Blocks of tiny numbers have such scales, too. So this is odd only if no part of the tensor has a size class.
"""
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
SHIFTED = {True: "shifted up", False: "shifted down"}
"""The kinds of matrices whose mean is far above 0, or far below: zero points that are off by one shift all weights."""
SHIFT, MOSTLY = 0.15, 0.75
"""A mean is far from 0 if it is more than this share of the root mean square. For a note, most matrices must have such
a mean: more than the share ``MOSTLY``."""
UNCENTRED, LEANING = "uncentred", "leaning"
"""The kinds of matrices in whose groups the mean is far from 0, whatever its sign: wrong zero points that differ from
group to group shift some groups up and others down, so that the mean of the matrix may be near 0."""
LEANS = {UNCENTRED: 1.0, LEANING: 0.4}
"""A matrix has one of these kinds if the median of |mean| / deviation of its groups is above this number.

It is about 0.12 for 32 weights around 0 that are drawn independently, and about 2.4 if zero points of 4 bits are off by
half of the codes. Zero points that are off by one make it only 0.3, with one sign, and are found as ``SHIFTED``.
"""
ONE_OFF, UNCLEAR = "one off", "unclear shift"
"""The kinds of matrices whose weights are shifted by about one step between codes, or by another part of a step."""
STEPS = {UNCLEAR: 0.35, ONE_OFF: 0.7}
"""A matrix has one of these kinds if its shift, in steps, is above this number. If zero points are off by one, most
shifts are between 0.9 and 1.2."""
MOST_STEPS = 1.4
"""A shift of more steps than this is of the kind ``UNCLEAR``, too."""
EXPLAIN = (ROUNDED, NO_OFFSET, SIGNED_CODES, EXCHANGED, OPPOSED, NARROW)
"""The kinds of odd scales and codes that also shift the mean: their matrices get no further note on the mean."""
APART = 5
"""Matrices of one role whose factors differ by this power of two (32 times) do not belong to one network."""
SUSPECT = 3
"""Of factors of one role that differ by ``APART``, the larger ones are wrong if they are over this power of two (8)."""
LAYER = 3
"""If all matrices of a layer differ by this power of two (8 times) from those of all other layers, they are wrong."""
ALL_ROLES = 2
"""If the factors of all roles differ by this power of two (4 times) in two groups of layers, one of them is wrong."""
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
)
OFF_BY_ONE = (
    f"a mean of over {percent(SHIFT)} of their size: perhaps the zero points or biases are wrong, such as zero "
    "points that are off by one (checkpoint_format gptq, gptq_v2)"
)
ONE_STEP = (
    "weights that are shifted by about one step between codes, unlike the same matrix of other layers: perhaps "
    "the zero points are off by one (GPTQ stores them less 1; gptq_v2 and AWQ as they are)"
)
WRONG_OFFSETS = (
    "weights that are not centred at 0: in most groups, the mean is larger than the standard deviation: perhaps "
    "the zero points or biases are wrong"
)
SHOWN = 3
"""The largest number of names in a note."""


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

    def add_all_but_sizes(self, other: OddScales) -> None:
        """Record what ``other`` has recorded, except sizes: ``other`` is about embeddings, which have other sizes."""
        for kind in (*SAID, UNFIT, ASYMMETRIC, SYMMETRIC):
            self.names[kind] |= other.names[kind]
        self._leans |= other._leans
        self._spreads |= other._spreads

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
        for kind, limit in LEANS.items():
            found[kind] = {name: None for name, lean in self._leans.items() if lean > limit}
        shifts = {name: abs(shift) for name, shift in self._shifts.items()}
        one = {name: None for name, shift in shifts.items() if STEPS[ONE_OFF] < shift < MOST_STEPS}
        unclear = {name: None for name, shift in shifts.items() if shift > STEPS[UNCLEAR] and name not in one}
        return {**found, ONE_OFF: one, UNCLEAR: unclear}


Found: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""The names of quantised tensors, by the path of their checkpoint, and by kind of odd scales or by size."""


def odd_scale_notes(found: Iterable[Found]) -> Iterator[str]:
    """Yield notes on the tensors in ``found``: one for each checkpoint and each kind of odd scales in it.

    There is also a note if most decoded matrices of a checkpoint are too large or too small. Another note is on
    matrices that are far larger or smaller than the same matrices of other layers; if all matrices of a layer are, a
    smaller difference is enough. The names of one checkpoint may be spread over several items of ``found``.
    """
    every = list(found)
    for path in dict.fromkeys(path for one in every for path in one):
        names = {kind: {name for one in every for name in one.get(path, {}).get(kind, ())} for kind in KINDS}
        names[ZERO] |= names[ZERO_BLOCKS] - names[LARGE] - names[SMALL] - names[USUAL] - names[INVERSE]
        for kind, said in SAID.items():
            if names[kind]:
                have = f"{count(len(names[kind]), 'quantised tensor')} {'has' if len(names[kind]) == 1 else 'have'}"
                yield f"{escape(path)}: {have} {said}: {_listed(names[kind])}"
        averaged = averaged_names(one[path] for one in every if path in one)
        unfit = unfit_zero_points(names, [averaged, *(names[kind] for kind in EXPLAIN)])
        for some, said in ((averaged, AVERAGED), (lost_zero_points(names), LOST_ZEROS), (unfit, UNFIT_ZEROS)):
            if some:
                have = f"{count(len(some), 'quantised tensor')} {'has' if len(some) == 1 else 'have'}"
                yield f"{escape(path)}: {have} {said}: {_listed(some)}"
        yield from _on_sizes(path, names)
        powers = powers_of(one[path] for one in every if path in one)
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
                f"{escape(path)}: in every role, the decoded matrices of some layers are at least {1 << ALL_ROLES} "
                "times as large as those of the other layers: the scales of some layers may be those of another model: "
                f"{_listed(groups)} ({len(groups)} of {len(powers)})"
            )
        elif not (large or small):
            yield from _on_single_layers(path, powers)


def _of_matrices(some: Sized, every: Sized) -> str:
    """Return "1 of 6 decoded matrices has" or "2 of 6 decoded matrices have"."""
    return f"{len(some)} of {len(every)} decoded matrices {'has' if len(some) == 1 else 'have'}"


def _on_single_layers(path: str, powers: Mapping[str, float]) -> Iterator[str]:
    """Yield notes on layers whose matrices are all far larger, or all far smaller, than those of the other layers."""
    for names, as_large in zip(
        outlying_layers(powers, LAYER), (f"over {1 << LAYER} times", f"less than 1/{1 << LAYER}"), strict=True
    ):
        if names:
            yield (
                f"{escape(path)}: {count(len(names), 'decoded matrix', 'decoded matrices')}, all that were looked at "
                f"of their layers, are {as_large} as large as those of other layers: the scales of these layers may be "
                f"squared, or those of another model: {_listed(names)}"
            )


def shifted_names(names: Mapping[str, Collection[str]], number: int) -> set[str]:
    """Return the matrices whose mean is far from 0, if most matrices have such a mean, and these have the same sign.

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
    """Return the matrices whose groups have means far from 0, if most of ``every`` are such, or if others are centred.

    The others of a matrix are those with the same role (name without numbers) and without such means. They are centred
    if there are at least ``SIBLINGS`` of them, and none is ``LEANING`` or shifted. If there is only one, the matrices
    of all roles without such means must be centred, and there must be ``FEWEST`` of them; the same holds for a matrix
    that is alone in its role, such as an output layer, but with ``AROUND`` of them. ``names`` has names by kind.
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

    No matrix of the role may have an unclear shift. ``names`` are the names of matrices by kind.
    """
    some, unclear = set(names.get(ONE_OFF, ())), set(names.get(UNCLEAR, ()))
    roles: dict[str, set[str]] = {}
    for name in every if some else ():
        roles.setdefault(NUMBER_IN_KEY.sub("#", name), set()).add(name)
    found = (role & some for role in roles.values() if len(role - some) >= UNSHIFTED and not role & unclear)
    return set().union(*found)


UNSHIFTED = 3
"""The fewest matrices of one role without a shift that show that others of this role are wrong."""
SIBLINGS = 2
"""The fewest matrices of one role with groups around 0 that show that others of this role are wrong.

One is enough in a model of two layers if its other matrices have groups around 0, too.
"""
AROUND = 8
"""The fewest other matrices with groups around 0 that show that a matrix without siblings is wrong."""


def _are_centred(others: Collection[str], leaning: Container[str], fewest: int) -> bool:
    """Return whether there are at least ``fewest`` other matrices, and none of them is in ``leaning``.

    The groups of weights in these other matrices have means near 0.
    """
    return len(others) >= fewest and not any(one in leaning for one in others)


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
