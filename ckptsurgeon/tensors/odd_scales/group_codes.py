"""Decides whether the codes of a quantised model were made with zero points that differ from the stored ones.

See ``tensors/decoders/_group_codes.py`` for the measured values of each tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

__all__ = ["ASYMMETRIC", "LOST_ZEROS", "SYMMETRIC", "UNFIT", "UNFIT_ZEROS", "lost_zero_points", "unfit_zero_points"]

UNFIT = "unfit groups"
"""The kind of tensors whose zero points are unrelated to the mean codes of their groups."""
ASYMMETRIC, SYMMETRIC = "asymmetric groups", "symmetric groups"
"""The kinds of tensors with a single zero point: codes that look asymmetric, or symmetric. A tensor may have both."""
FEWEST, MOSTLY = 4, 0.75
"""Zero points were lost if more than the share ``MOSTLY`` of at least ``FEWEST`` tensors is asymmetric."""
UNFIT_ZEROS = (
    "zero points or biases that are unrelated to the mean codes of their groups: perhaps they, or the order of "
    "the columns (g_idx), are those of another tensor"
)
LOST_ZEROS = (
    "the same zero point in every group, although most groups use both the lowest and the highest code, as only "
    "asymmetric quantisation does: perhaps the zero points were lost"
)


def lost_zero_points(names: Mapping[str, Collection[str]]) -> set[str]:
    """Return the tensors whose codes look asymmetric, although they have a single zero point.

    The set is empty unless most tensors with a single zero point look asymmetric. ``names`` has names of tensors by
    kind.
    """
    symmetric = set(names.get(SYMMETRIC, ()))
    found = set(names.get(ASYMMETRIC, ())) - symmetric
    return found if len(found) >= FEWEST and len(found) > MOSTLY * len(found | symmetric) else set()


def unfit_zero_points(names: Mapping[str, Collection[str]], explained: Iterable[Collection[str]]) -> set[str]:
    """Return the tensors whose zero points do not fit their codes, except those in ``explained``.

    ``names`` has names of tensors by kind. For the tensors in ``explained``, another note describes the fault of their
    zero points, scales or codes.
    """
    return set(names.get(UNFIT, ())).difference(*explained)
