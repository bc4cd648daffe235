"""Computes a part of the codes or scales of a quantised tensor, reading only the needed values of the weight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from ..decoders._decoder import groups_of
from ..info import Encoded, TensorInfo
from ..ops.casts import raw_dtype
from ..ops.regions import Array, Box, blocks, box_shape
from ._arranged import arranged, sorted_columns
from ._encoder import Encoder, Scales, encoder_of
from ._extremes import ELEMENTS, Read, as_float32, elements_of, extremes, shifted
from ._losses import RoundingLoss, loss_of

__all__ = ["TensorStatistics", "encode"]


@dataclass(frozen=True)
class TensorStatistics:
    """Caches numbers computed from all values of a tensor, such as a global scale; several threads may call ``of``."""

    _found: dict[Encoded, tuple[Array, Array]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, made: Encoded, compute: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
        """Return the result of ``compute`` for ``made``; ``compute`` is called only once for all equal ``made``."""
        with self._lock:
            if made not in self._found:
                self._found[made] = compute()
            return self._found[made]


def encode(
    read: Read,
    info: TensorInfo,
    box: Box,
    *,
    kept: TensorStatistics | None = None,
    measured: Callable[[RoundingLoss], None] | None = None,
) -> Array:
    """Return the part ``box`` of a stored tensor (such as the codes) of a quantised tensor, computed from the weight.

    ``info.made`` is an ``Encoded``. The array has the numpy type that ``raw_dtype`` returns. ``read`` returns a part of
    the weight. Pass the same ``kept`` for all parts of a tensor: it caches numbers that need all values. ``measured``
    is called with the rounding loss of the codes in ``box``. Raises PlanError if a value is NaN or infinite, or if a
    scale exceeds the range of its dtype.
    """
    made = info.made
    assert isinstance(made, Encoded)
    kept = kept or TensorStatistics()
    if made.role == "shape":
        return np.asarray(made.of[0].shape, raw_dtype(info.dtype))[box[0][0] : box[0][1]]
    if dict(made.facts).get("turned") and made.role != "whole":
        plain = replace(made, facts=tuple(pair for pair in made.facts if pair[0] != "turned"))
        sideways = (*box[:-2], box[-1], box[-2])
        found = encode(read, replace(info, made=plain), sideways, kept=kept, measured=measured)
        return np.swapaxes(found, -1, -2)
    made, read = arranged(made, read)
    with np.errstate(all="ignore"):  # values that are not finite raise an error
        over = _global_scale(read, made, kept)
        if made.role == "whole":
            return np.full(box_shape(box), over, "<f4")
        if made.role == "codes":
            return _codes(read, info, made, box, over=over, kept=kept, measured=measured)
        encoder = encoder_of(made)
        if made.role == "zero":
            return _zeros(read, made, box, encoder)
        groups = box
        if made.role == "nested":
            nested, number = int(dict(made.facts)["nested"]), -(-made.of[0].shape[-1] // made.steps[-1])
            groups = (*box[:-1], (box[-1][0] * nested, min(box[-1][1] * nested, number)))
        return _scales(encoder, made, _extremes_of(read, kept), groups, over)[made.role]


Extremes: TypeAlias = Callable[[Encoded, Box], tuple[Array, Array]]
"""A function that returns the minimum and the maximum of each group in a box of groups."""


def _extremes_of(read: Read, kept: TensorStatistics) -> Extremes:
    """Return a function that computes the minimum and the maximum of each group.

    If all elements are in one group, they are read only once: the result is cached in ``kept``.
    """

    def found(made: Encoded, groups: Box) -> tuple[Array, Array]:
        weight, with_zero = made.of[0], not dict(made.facts).get("without_zero")

        def compute() -> tuple[Array, Array]:
            return extremes(read, weight, made.steps, groups, made.name, with_zero=with_zero)

        if all(step >= size for step, size in zip(made.steps, weight.shape, strict=True)):
            return kept.of(replace(made, role="scale"), compute)
        return compute()

    return found


def _scales(encoder: Encoder, made: Encoded, extremes_of: Extremes, groups: Box, over: float) -> Scales:
    """Return, by role, the scales of the groups in the box ``groups``; ``over`` is the global scale, 0 if none.

    With double quantisation, several groups share a second-level scale. Then the values of all these groups are read,
    even if only some of them are in the box. If the role is ``nested``, the box must begin with the first of the groups
    that share a scale.
    """
    wide = _shared(made, groups)
    found = encoder.scales(made, *extremes_of(made, wide), over)
    if wide == groups:
        return found
    begin = groups[-1][0] - wide[-1][0]
    within = slice(begin, begin + groups[-1][1] - groups[-1][0])
    return {role: one if role == "nested" else one[..., within] for role, one in found.items()}


def _shared(made: Encoded, groups: Box) -> Box:
    """Return ``groups``, extended to contain all groups that share a second-level scale with one of its groups.

    Only double quantisation has second-level scales. ``groups`` and the result are ranges (begin, end) along each
    dimension; ``made`` describes the encoded tensor.
    """
    nested = int(dict(made.facts).get("nested", 1))
    number = -(-made.of[0].shape[-1] // made.steps[-1])
    begin, end = groups_of(groups[-1], nested)
    return (*groups[:-1], (begin * nested, min(end * nested, number)))


def _global_scale(read: Read, made: Encoded, kept: TensorStatistics) -> float:
    """Return the global scale of a tensor, 0 if it has none; all tensors that share the scale are read."""
    facts = dict(made.facts)
    largest = facts.get("over")
    if largest is None:
        return 0.0

    def compute() -> tuple[Array, Array]:
        found = np.float32(0)
        for name, one in zip((made.name, *made.others), made.of, strict=True):
            pair = extremes(read, one, one.shape, tuple((0, 1) for _ in one.shape), name)
            found = max(found, *(np.abs(end).max() for end in pair))
        if facts.get("times"):  # the order of operations in ModelOpt
            over = found / np.float32(largest) or np.float32(1)
        else:
            # torch divides a number by a tensor in this way: it multiplies the number by the reciprocal of the tensor
            over = np.float32(1) / max(found, np.finfo("f4").tiny) * np.float32(largest)
            over = np.float32(1) if not np.isfinite(over) else over
        return np.asarray(over), np.asarray(over)

    return float(kept.of(replace(made, role="whole"), compute)[0])


def _codes(
    read: Read,
    info: TensorInfo,
    made: Encoded,
    box: Box,
    *,
    over: float,
    kept: TensorStatistics,
    measured: Callable[[RoundingLoss], None] | None,
) -> Array:
    weight, encoder = made.of[0], encoder_of(made)
    packing = encoder.packing(made)
    (first, last), size = box[-1], weight.shape[-1]
    begin = first // packing.items * packing.codes
    end = min(-(-last // packing.items) * packing.codes, size)
    columns = sorted_columns(made, read) if dict(made.facts).get("ordered") else None
    if columns is not None:  # sorted columns are anywhere in the row
        begin, end = 0, size
    elements = (*box[:-1], (begin, end))
    groups = tuple(groups_of(span, step) for span, step in zip(elements, made.steps, strict=True))
    raw = read(weight, elements)
    needed = elements_of(_shared(made, groups), made.steps, weight.shape)
    again = read if elements != needed else _within(raw, elements)
    stored = _scales(encoder, made, _extremes_of(again, kept), groups, over) if made.scale_dtype else {}
    scales = {role: _numbers(one, made, role) for role, one in stored.items() if role != "nested"}
    items = -(-(elements[-1][1] - begin) // packing.codes) * packing.items
    out = np.zeros((*box_shape(box)[:-1], items), raw_dtype(info.dtype))
    for sub in blocks(box_shape(elements), ELEMENTS if columns is None else max(ELEMENTS, size)):
        values = as_float32(raw[tuple(slice(*span) for span in sub)], weight.dtype)
        part = shifted(sub, elements)
        spread = {role: _spread(one, made.steps, part, groups) for role, one in scales.items()}
        codes, meant = encoder.codes(made, values, spread, over)
        if measured is not None:
            measured(loss_of(values, meant, made.name))
        if columns is not None:
            ordered, codes = codes, np.empty_like(codes)
            codes[..., columns] = ordered
        at = sub[-1][0] // packing.codes * packing.items
        words = encoder.packed(made, codes).view(out.dtype)
        out[(*(slice(*span) for span in sub[:-1]), slice(at, at + words.shape[-1]))] = words
    skipped = first - begin // packing.codes * packing.items
    return out[..., skipped : skipped + last - first]


def _within(raw: Array, origin: Box) -> Read:
    """Return a function that reads parts of a tensor from ``raw``, an array with the values of the box ``origin``."""

    def read(info: TensorInfo, box: Box) -> Array:
        found: Array = raw[tuple(slice(a - at, b - at) for (a, b), (at, _) in zip(box, origin, strict=True))]
        return found

    return read


def _numbers(stored: Array, made: Encoded, role: str) -> Array:
    return as_float32(stored, made.scale_dtype) if role in ("scale", "bias") else stored.astype("<f4")


def _spread(scale: Array, steps: Sequence[int], part: Box, groups: Box) -> Array:
    """Return the scales of the elements in ``part``, in a shape that numpy broadcasts to the shape of the elements.

    ``scale`` contains the scales of the groups in the box ``groups``. ``steps`` is the size of a group along each
    dimension.
    """
    for dim, ((begin, end), step, (first, _)) in enumerate(zip(part, steps, groups, strict=True)):
        near = slice(begin // step - first, -(-end // step) - first)
        scale = scale[(slice(None),) * dim + (near,)]
        if scale.shape[dim] > 1 and step > 1:
            scale = np.take(scale, np.arange(begin, end) // step - begin // step, axis=dim)
    return scale


def _zeros(read: Read, made: Encoded, box: Box, encoder: Encoder) -> Array:
    """Return the part ``box`` of the zero points: one element for each group, or packed in the same way as codes.

    If they are packed, ``zeros_packed`` in ``made.facts`` is the dimension, counted from the end: 1 is the last
    dimension, 2 the last but one, and so on.
    """
    axis = -int(dict(made.facts).get("zeros_packed", 0))
    if not axis:
        found: Array = encoder.scales(made, *extremes(read, made.of[0], made.steps, box, made.name), 0.0)["zero"]
        return found
    packing, (first, last) = encoder.packing(made), box[axis]
    begin = first // packing.items * packing.codes
    end = min(-(-last // packing.items) * packing.codes, made.of[0].shape[axis])
    spans = list(box)
    spans[axis] = (begin, end)
    pair = extremes(read, made.of[0], made.steps, tuple(spans), made.name)
    zero = encoder.scales(made, *pair, 0.0)["zero"]
    words = encoder.packed(made, np.swapaxes(zero, -1, axis))
    skipped = first - begin // packing.codes * packing.items
    return np.swapaxes(words[..., skipped : skipped + last - first], -1, axis)
