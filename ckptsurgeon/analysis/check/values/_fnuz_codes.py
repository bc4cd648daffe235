"""Finds 8-bit floats whose dtype may really be a ``fnuz`` dtype (of AMD's MI300), not the usual dtype that is given.

The same byte means half as large a number in e4m3fnuz and e5m2fnuz, which have no negative zero
(https://arxiv.org/abs/2206.02915).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..subject import Subject

__all__ = ["perhaps_fnuz"]

DENORMALS: Mapping[str, tuple[str, int]] = {
    "float8_e4m3fn": ("float8_e4m3fnuz", 7),
    "float8_e5m2": ("float8_e5m2fnuz", 3),
}
"""{dtype: (its ``fnuz`` dtype, the number of its positive denormal numbers, which are equally spaced from 0 on)}."""
CENTRED = 0.3
"""A tensor is judged only if its mean is below this share of its root mean square: about half is negative then."""
EXPECTED = 16
"""Tensors are judged only if at least this many negative zeros are expected: half of the numbers rounded to 0."""
SAID = (
    "of 8-bit floats without a single negative zero, although there should be about {expected:,}: perhaps their dtype "
    "is {dtype}, so that the right weights are half as large"
)


def perhaps_fnuz(subject: Subject) -> tuple[list[str], str]:
    """Return the keys of codes whose dtype may be a ``fnuz`` dtype, and the text of the finding.

    The list is empty unless all codes of a dtype together have no negative zero although many are expected: the range
    of numbers that are rounded to a negative zero is half as wide as that of each positive or negative denormal.
    """
    for dtype, (other, number) in DENORMALS.items():
        keys = [key for key in sorted(subject.codes) if key in subject.measured and subject.tensors[key].dtype == dtype]
        figures = [one for key in keys if (one := subject.measured[key].figures) is not None]
        centred = [one for one in figures if abs(one.total) < CENTRED * one.rms * one.number]
        expected = sum(one.denormals for one in centred) // (4 * number)
        if expected >= EXPECTED and not any(one.negative_zeros for one in figures):
            return keys, SAID.format(expected=expected, dtype=other)
    return [], ""
