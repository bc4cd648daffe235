"""Adapters as maps along axes: which part of the source a part of the output needs, and what it is then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from ...planning.mismatch.parse import Policy, parse_policy
from ...planning.mismatch.positions import positions_of
from ...tensors.ops.boxes import Array, Box
from .inverse import pseudo_inverse_resize
from .resample import resampled
from .taps import Taps, apply_taps, crossed, from_rows, kept_before, reach_of

__all__ = ["ADAPTERS", "adaptation_box", "adapted"]

ADAPTERS = ("positions-1d", "positions-2d", "patch", "channels")
"""The operations that are computed here."""

Shape = Sequence[int]
Maps = Mapping[int, Taps]


def adaptation_box(policy: str, box: Box, source: Shape, destination: Shape) -> Box:
    """Return the part of the source that a part of an adapted tensor is made from."""
    maps = _maps(policy, tuple(source), tuple(destination))
    return tuple(reach_of(maps[axis], *ends) if axis in maps else ends for axis, ends in enumerate(box))


def adapted(policy: str, values: Array, part: Box, box: Box, *, source: Shape, destination: Shape) -> Array:
    """Return ``box`` of an adapted tensor from its ``part`` of the source, in double precision."""
    for axis, taps in _maps(policy, tuple(source), tuple(destination)).items():
        values = apply_taps(values, axis, taps, rows=box[axis], first=part[axis][0])
    return values


@lru_cache(maxsize=8)
def _maps(policy: str, have: tuple[int, ...], want: tuple[int, ...]) -> Maps:
    """Return the map along each axis that an adapter changes; the shapes fit it."""
    asked = parse_policy(policy)
    makers = {"patch": _patch, "channels": _channels}
    return MappingProxyType(makers.get(asked.name, _positions)(asked, have, want))


def _positions(policy: Policy, have: Shape, want: Shape) -> dict[int, Taps]:
    """Resample positions as timm's ``resample_abs_pos_embed`` and DeiT's ``main.py`` do, tokens before them kept.

    https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/pos_embed.py and
    https://github.com/facebookresearch/deit/blob/main/main.py (bicubic, without antialiasing).
    """
    found = positions_of(policy, have, want)
    assert not isinstance(found, str)  # by fit
    if len(found.old) == 1:
        along = resampled(found.old[0], found.new[0], "bilinear", antialias=False)
        return {found.axis: kept_before(along, found.prefix)}
    method, antialias = found.policy.get("method"), found.policy.get("antialias") == "yes"
    rows, columns = (
        resampled(old, new, method, antialias=antialias) for old, new in zip(found.old, found.new, strict=True)
    )
    return {found.axis: kept_before(crossed(rows, columns, found.old[1]), found.prefix)}


def _patch(policy: Policy, have: Shape, want: Shape) -> dict[int, Taps]:
    """Resize the patches of an embedding, see ``inverse.py``."""
    antialias = (policy.get("antialias") or "yes") == "yes"
    method = policy.get("method") or "bicubic"
    return {
        axis: pseudo_inverse_resize(have[axis], want[axis], method, antialias=antialias)
        for axis in (2, 3)
        if have[axis] != want[axis]
    }


def _channels(policy: Policy, have: Shape, want: Shape) -> dict[int, Taps]:
    """Sum input channels into one, or repeat them and rescale, as timm's ``adapt_input_conv`` does.

    https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/_manipulate.py
    """
    inputs, wanted = have[1], want[1]
    if wanted == 1:
        return {1: from_rows([(range(inputs), [1.0] * inputs)])}
    return {1: from_rows([((channel % inputs,), (inputs / wanted,)) for channel in range(wanted)])}
