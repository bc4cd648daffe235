"""Counts the groups of 8-bit codes whose largest code is the largest possible one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..info import Decoded
from ..ops.regions import Array, Box

__all__ = ["ends_of_groups"]

LARGEST: Mapping[str, tuple[float, int]] = {
    "int8": (127.0, 0), "float8_e4m3fn": (448.0, 0x7E), "float8_e4m3fnuz": (240.0, 0x7F),
    "float8_e5m2": (57344.0, 0x7B), "float8_e5m2fnuz": (57344.0, 0x7F),
}  # fmt: skip
"""{dtype of codes: (largest possible code, its byte without the sign)}; a group's largest weight gets this code."""
GROUPS = 64
"""About how many groups of rows are looked at in each decoded part."""


FEW = 4
"""If scales are powers of two, a group with more codes of the largest size than this counts as clipped."""


def ends_of_groups(made: Decoded, codes: Array, box: Box, *, are_powers: bool) -> tuple[int, int]:
    """Return (number of groups with the largest possible code, number of groups that were examined).

    A group is the codes that share a scale. A group is examined if all of it is in the part ``box`` of a weight, and
    some of its codes are not 0. ``codes`` are the codes of this part, as floats or as bytes. Both numbers are 0 if the
    whole weight has one scale, and for codes that are packed or have zero points. If scales are powers of two
    (``are_powers``), they may be rounded down, so that weights are clipped: groups that have the largest code more than
    ``FEW`` times are left out.
    """
    facts, parts = dict(made.facts), dict(made.parts)
    if made.encoding != "scaled" or "zero" in parts or parts["codes"].dtype not in LARGEST or len(box) < 2:
        return 0, 0
    *lead, height, width = parts["codes"].shape
    rows, columns = int(facts[f"step{len(lead)}"]), int(facts[f"step{len(lead) + 1}"])
    (top, bottom), (left, right) = box[-2:]
    first, last, across = -(-top // rows), bottom // rows, (right - left) // columns
    if rows * columns in (1, height * width) or last <= first or left % columns or not across:
        return 0, 0
    whole = codes.reshape(-1, bottom - top, right - left)[0]
    some = whole[first * rows - top : last * rows - top, : across * columns]
    groups = some.reshape(last - first, rows, across, columns)[:: (last - first) // GROUPS + 1]
    number, byte = LARGEST[parts["codes"].dtype]
    if groups.dtype.kind == "f" or parts["codes"].dtype == "int8":
        sizes = abs(groups.astype("<f4"))
    else:
        sizes, number = groups & 0x7F, byte
    largest = sizes.max((1, 3))
    if are_powers:
        largest = largest[np.count_nonzero(sizes >= number, axis=(1, 3)) <= FEW]
    return int(np.count_nonzero(largest >= number)), int(np.count_nonzero(largest))
