"""Where a tensor of one or more names comes from, which the destination ties: its sources must not differ."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..plan.plan import Equal
from .select import Origin, Selection

__all__ = ["origin_of"]


def origin_of(group: Sequence[str], selection: Selection, equal: list[Equal], names: Sequence[str]) -> Origin | None:
    """Return the origin of a tensor that has one or more names: the last source that has any of them."""
    found = [origin for name in group for origin in selection.origins.get(name, ())]
    if not found:
        return None
    last = max(origin.source for origin in found)
    same = [origin for origin in found if origin.source == last]
    for other in same[1:]:
        _check_equal(same[0], other, equal, names)
    return same[0]


def _check_equal(first: Origin, other: Origin, equal: list[Equal], names: Sequence[str]) -> None:
    """Two sources for one tensor: the same bytes are fine, known different ones are not, else apply looks."""
    a, b = first.info, other.info
    if a.place is not None and a.place == b.place:
        return
    known = [_checksum(info) for info in (a, b)]
    if a.shape != b.shape or a.dtype != b.dtype or (None not in known and known[0] != known[1]):
        raise PlanError(
            f"{escape(first.key)} and {escape(other.key)} of {escape(names[first.source])} differ, "
            "but the destination ties them.",
            hint="Exclude the one that should not count.",
        )
    equal.append(Equal(first.source, first.key, other.key))


def _checksum(info: TensorInfo) -> int | None:
    """Return the CRC-32 that the container recorded for a tensor, if it did for just its bytes."""
    whole = info.is_plain and info.storage is not None and info.nbytes == info.storage.nbytes
    return info.storage.crc32 if whole and info.storage is not None else None
