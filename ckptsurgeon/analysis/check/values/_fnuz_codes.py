"""Finds 8-bit floats without a negative zero: their stated dtype may be wrong, and the right one a ``fnuz`` dtype.

These dtypes, e4m3fnuz and e5m2fnuz of AMD's MI300, have no negative zero, and each byte encodes half the number that it
encodes in e4m3fn or e5m2 (https://arxiv.org/abs/2206.02915).
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
"""Only tensors whose mean is below this share of their root mean square are judged: half of the values are negative."""
EXPECTED = 16
"""Tensors are judged only if at least this many negative zeros are expected, by the number of denormals."""
SAID = (
    "of 8-bit floats without a single negative zero, although there should be about {expected:,}: perhaps their dtype "
    "is {dtype}, so that the right weights are half as large"
)


def perhaps_fnuz(subject: Subject) -> tuple[list[str], str]:
    """Return the keys of codes whose dtype may be a ``fnuz`` dtype, and the text of the finding.

    The list is empty unless the codes of a dtype have no negative zero although many are expected. The expected number
    follows from the number of denormals: the range of numbers that are rounded to a negative zero is half as wide as
    the range that is rounded to a denormal.
    """
    for dtype, (other, number) in DENORMALS.items():
        keys = [key for key in sorted(subject.codes) if key in subject.measured and subject.tensors[key].dtype == dtype]
        figures = [one for key in keys if (one := subject.measured[key].figures) is not None]
        centred = [one for one in figures if abs(one.total) < CENTRED * one.rms * one.number]
        expected = sum(one.denormals for one in centred) // (4 * number)
        if expected >= EXPECTED and not any(one.negative_zeros for one in figures):
            return keys, SAID.format(expected=expected, dtype=other)
    return [], ""
