"""The interface of encoders, and the encoding of a part of a tensor, for which only the parts it needs are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, TypeAlias, cast

import numpy as np

from ...util.registry import discover
from ..decoders._decoder import groups_of
from ..info import Encoded, TensorInfo
from ..ops.casts import raw_dtype
from ..ops.regions import Array, Box, blocks, box_shape
from ._extremes import ELEMENTS, Read, as_float32, elements_of, extremes, shifted
from ._losses import RoundingLoss, loss_of

__all__ = ["Encoder", "Packing", "Scales", "WholeNumbers", "encode", "is_encoder", "packing_of", "part_shape"]

Scales: TypeAlias = Mapping[str, Array]
"""The scales of groups, and perhaps their zero points, by role (``scale``, ``zero``), as they are stored."""


@dataclass(frozen=True)
class Packing:
    """How codes are stored along the last dimension: ``codes`` of them in ``items`` elements of the stored tensor."""

    codes: int = 1
    items: int = 1


class Encoder(Protocol):
    """The interface of an encoder; each public module of this folder has an instance, ``ENCODER``."""

    facts: tuple[str, ...]
    """The names of the facts that it needs, in ``Encoded``."""

    def packing(self, made: Encoded) -> Packing:
        """Return how the codes are packed."""
        ...

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        """Return the scales of groups as they are stored, by the least and the greatest value of each.

        ``over`` is the tensor's global scale, 0 if it has none.
        """
        ...

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        """Return the code of each of the ``values``, and the numbers that these codes stand for.

        ``scales`` are float32, in a shape that numpy broadcasts to that of the values.
        """
        ...

    def packed(self, made: Encoded, codes: Array) -> Array:
        """Return codes as they are stored; the last item of a row may have fewer codes than it has place for."""
        ...


@cache
def _encoders() -> dict[str, Encoder]:
    return cast("dict[str, Encoder]", discover("ckptsurgeon.tensors.encoders", "ENCODER"))


def is_encoder(name: str, facts: Iterable[str]) -> bool:
    """Return whether there is an encoder with this name, and ``facts`` are the names of all numbers that it needs."""
    return name in _encoders() and set(_encoders()[name].facts) <= set(facts)


def packing_of(made: Encoded) -> Packing:
    """Return how the codes of a tensor are packed."""
    return _encoders()[made.encoding].packing(made)


def part_shape(made: Encoded, stored: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which a part of a quantised tensor is computed; ``stored`` is the one that it is stored in.

    Scales and zero points have an element for each group of the weight. Zero points that are packed are packed along
    the rows.
    """
    if made.role not in ("scale", "zero"):
        return tuple(stored)
    groups = tuple(-(-size // step) for size, step in zip(made.of[0].shape, made.steps, strict=True))
    facts = dict(made.facts)
    if made.role == "zero" and facts.get("zeros_packed"):
        return (*groups[:-2], -(-groups[-2] * int(facts["bits"]) // 32), groups[-1])
    return groups


class WholeNumbers:
    """Keeps the numbers for which a whole tensor has to be read, as its global scale; several threads may ask."""

    def __init__(self) -> None:
        self._found: dict[Encoded, tuple[Array, Array]] = {}
        self._lock = threading.Lock()

    def of(self, made: Encoded, compute: Callable[[], tuple[Array, Array]]) -> tuple[Array, Array]:
        """Return what ``compute`` returned for this part of a tensor; only the first call computes it."""
        with self._lock:
            if made not in self._found:
                self._found[made] = compute()
            return self._found[made]


def encode(
    read: Read,
    info: TensorInfo,
    box: Box,
    *,
    kept: WholeNumbers | None = None,
    measured: Callable[[RoundingLoss], None] | None = None,
) -> Array:
    """Return the part ``box`` of a part of a quantised tensor, in the type of ``raw_dtype``.

    ``read`` returns a part of the tensor that is quantised. ``kept`` should be the same for all parts of a tensor.
    ``measured`` is called with what the codes in ``box`` lose. Raises PlanError for a value that is NaN or infinite.
    """
    made = info.made
    assert isinstance(made, Encoded)
    kept = kept or WholeNumbers()
    if made.role == "shape":
        return np.asarray(made.of[0].shape, raw_dtype(info.dtype))[box[0][0] : box[0][1]]
    with np.errstate(all="ignore"):  # values that are not finite raise an error
        over = _global_scale(read, made, kept)
        if made.role == "whole":
            return np.full(box_shape(box), over, "<f4")
        if made.role == "codes":
            return _codes(read, info, made, box, over=over, kept=kept, measured=measured)
        encoder = _encoders()[made.encoding]
        if made.role == "zero":
            return _zeros(read, made, box, encoder)
        scale: Array = encoder.scales(made, *_extremes(read, made, box, kept), over)[made.role]
        return scale


def _extremes(read: Read, made: Encoded, groups: Box, kept: WholeNumbers) -> tuple[Array, Array]:
    """Return the least and the greatest value of each group; if all elements share a scale, they are read once."""
    weight = made.of[0]
    if all(step >= size for step, size in zip(made.steps, weight.shape, strict=True)):
        return kept.of(replace(made, role="scale"), lambda: extremes(read, weight, made.steps, groups, made.name))
    return extremes(read, weight, made.steps, groups, made.name)


def _global_scale(read: Read, made: Encoded, kept: WholeNumbers) -> float:
    """Return the scale of the whole tensor, for which all tensors that share it are read; 0 if it has none."""
    largest = dict(made.facts).get("over")
    if largest is None:
        return 0.0

    def compute() -> tuple[Array, Array]:
        found = np.float32(0)
        for name, one in zip((made.name, *made.others), made.of, strict=True):
            pair = extremes(read, one, one.shape, tuple((0, 1) for _ in one.shape), name)
            found = max(found, *(np.abs(end).max() for end in pair))
        over = np.float32(1) / max(found, np.finfo("f4").tiny) * np.float32(largest)  # as torch divides
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
    kept: WholeNumbers,
    measured: Callable[[RoundingLoss], None] | None,
) -> Array:
    weight, encoder = made.of[0], _encoders()[made.encoding]
    packing = encoder.packing(made)
    (first, last), size = box[-1], weight.shape[-1]
    begin = first // packing.items * packing.codes
    elements = (*box[:-1], (begin, min(-(-last // packing.items) * packing.codes, size)))
    groups = tuple(groups_of(span, step) for span, step in zip(elements, made.steps, strict=True))
    raw = read(weight, elements)
    again = read if elements != elements_of(groups, made.steps, weight.shape) else _within(raw, elements)
    stored = encoder.scales(made, *_extremes(again, made, groups, kept), over)
    scales = {role: _numbers(one, made, role) for role, one in stored.items()}
    items = -(-(elements[-1][1] - begin) // packing.codes) * packing.items
    out = np.zeros((*box_shape(box)[:-1], items), raw_dtype(info.dtype))
    for sub in blocks(box_shape(elements), ELEMENTS):
        values = as_float32(raw[tuple(slice(*span) for span in sub)], weight.dtype)
        part = shifted(sub, elements)
        spread = {role: _spread(one, made.steps, part, groups) for role, one in scales.items()}
        codes, meant = encoder.codes(made, values, spread, over)
        if measured is not None:
            measured(loss_of(values, meant, made.name))
        at = sub[-1][0] // packing.codes * packing.items
        words = encoder.packed(made, codes)
        out[(*(slice(*span) for span in sub[:-1]), slice(at, at + words.shape[-1]))] = words
    skipped = first - begin // packing.codes * packing.items
    return out[..., skipped : skipped + last - first]


def _within(raw: Array, origin: Box) -> Read:
    """Return a function that reads parts of a tensor from the part ``origin`` of it, which is in memory."""

    def read(info: TensorInfo, box: Box) -> Array:
        found: Array = raw[tuple(slice(a - at, b - at) for (a, b), (at, _) in zip(box, origin, strict=True))]
        return found

    return read


def _numbers(stored: Array, made: Encoded, role: str) -> Array:
    return as_float32(stored, made.scale_dtype) if role == "scale" else stored.astype("<f4")


def _spread(scale: Array, steps: Sequence[int], part: Box, groups: Box) -> Array:
    """Return the scales of the elements in ``part``, in a shape that numpy broadcasts to theirs.

    ``scale`` has those of the box ``groups``.
    """
    for dim, ((begin, end), step, (first, _)) in enumerate(zip(part, steps, groups, strict=True)):
        near = slice(begin // step - first, -(-end // step) - first)
        scale = scale[(slice(None),) * dim + (near,)]
        if scale.shape[dim] > 1 and step > 1:
            scale = np.take(scale, np.arange(begin, end) // step - begin // step, axis=dim)
    return scale


def _zeros(read: Read, made: Encoded, box: Box, encoder: Encoder) -> Array:
    """Return zero points: packed as codes are, but along the rows, if the facts say that; else one for each group."""
    if not dict(made.facts).get("zeros_packed"):
        found: Array = encoder.scales(made, *extremes(read, made.of[0], made.steps, box, made.name), 0.0)["zero"]
        return found
    packing, (*lead, (first, last), groups) = encoder.packing(made), box
    begin = first // packing.items * packing.codes
    end = min(-(-last // packing.items) * packing.codes, made.of[0].shape[-2])
    pair = extremes(read, made.of[0], made.steps, (*lead, (begin, end), groups), made.name)
    zero = encoder.scales(made, *pair, 0.0)["zero"]
    words = np.swapaxes(encoder.packed(made, np.swapaxes(zero, -1, -2)), -1, -2)
    skipped = first - begin // packing.codes * packing.items
    return words[..., skipped : skipped + last - first, :]
