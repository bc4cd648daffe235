"""Finds 8-bit floats that are perhaps of a ``fnuz`` dtype, the one of AMD's MI300, under the name of a usual dtype.

Both dtypes have the same bytes, but all numbers of e4m3fnuz and e5m2fnuz are half as large, and they have no negative
zero (https://arxiv.org/abs/2206.02915).
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
"""Only tensors whose mean is below this share of their root mean square have as many negative as positive numbers."""
EXPECTED = 16
"""The fewest negative zeros that must be expected. Half of the numbers that are rounded to 0 are negative."""
SAID = (
    "of 8-bit floats without a single negative zero, although there should be about {expected:,}: perhaps their dtype "
    "is {dtype}, so that the right weights are half as large"
)


def perhaps_fnuz(subject: Subject) -> tuple[list[str], str]:
    """Return the keys of codes that are perhaps of a ``fnuz`` dtype, and the text of the finding.

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
