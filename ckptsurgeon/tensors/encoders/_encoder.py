"""Defines the interface of encoders, and computes the shapes of the stored tensors that they make from a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias, cast

from ...util.registry import discover
from ..dtypes import ROUNDED
from ..info import Encoded
from ..ops.regions import Array
from ._arranged import arranged_shape
from ._scale_dtypes import EXPONENTS

__all__ = ["Encoder", "Packing", "Scales", "encoder_of", "is_computed_in", "is_encoder", "packing_of", "part_shape"]

Scales: TypeAlias = Mapping[str, Array]
"""Arrays by role: scales of groups (``scale``), and perhaps zero points (``zero``) or biases, in their stored dtypes.

``nested`` contains the second-level scales of double quantisation; each other array has one element for each group.
"""


@dataclass(frozen=True)
class Packing:
    """How codes are packed along the last dimension: ``codes`` codes are stored in ``items`` elements."""

    codes: int = 1
    items: int = 1


class Encoder(Protocol):
    """The interface of an encoder; each public module of this folder has an instance, ``ENCODER``."""

    facts: tuple[str, ...]
    """The names of the entries of ``Encoded.facts`` that this encoder requires."""

    def packing(self, made: Encoded) -> Packing:
        """Return how the codes are packed."""
        ...

    def scales(self, made: Encoded, least: Array, greatest: Array, over: float) -> Scales:
        """Return the scales of groups in their stored dtypes, and zero points or biases if the encoding has them.

        ``least`` and ``greatest`` are the minimum and the maximum of each group. ``over`` is the tensor's global scale,
        0 if it has none.
        """
        ...

    def codes(self, made: Encoded, values: Array, scales: Scales, over: float) -> tuple[Array, Array]:
        """Return the code of each of the ``values``, and the decoded values of these codes.

        ``scales`` are float32, in a shape that numpy broadcasts to the shape of the values.
        """
        ...

    def packed(self, made: Encoded, codes: Array) -> Array:
        """Return codes packed as they are stored; the last item of a row may contain fewer codes than fit."""
        ...


@cache
def _encoders() -> dict[str, Encoder]:
    return cast("dict[str, Encoder]", discover("ckptsurgeon.tensors.encoders", "ENCODER"))


def encoder_of(made: Encoded) -> Encoder:
    """Return the encoder that ``made.encoding`` refers to."""
    return _encoders()[made.encoding]


def is_encoder(name: str, facts: Iterable[str]) -> bool:
    """Return whether an encoder is called ``name``, and each fact that it requires (such as ``bits``) is in ``facts``.

    ``facts`` has the names of the entries of an ``Encoded.facts``.
    """
    return name in _encoders() and set(_encoders()[name].facts) <= set(facts)


def packing_of(made: Encoded) -> Packing:
    """Return the packing of the codes of a tensor."""
    return encoder_of(made).packing(made)


def part_shape(made: Encoded, stored: Sequence[int]) -> tuple[int, ...]:
    """Return the shape in which ``encode`` computes the stored tensor ``made``; ``stored`` is its shape in the file.

    For scales and zero points, the shapes may differ: they are computed with one element for each group of the arranged
    weight, unless zero points are packed.
    """
    if made.role in ("whole", "shape"):
        return tuple(stored)
    shape = _computed_shape(made)
    return (*shape[:-2], shape[-1], shape[-2]) if dict(made.facts).get("turned") else shape


def is_computed_in(made: Encoded, dtype: str) -> bool:
    """Return whether ``encode`` can compute the stored tensor ``made`` in ``dtype``, which is its dtype in the file."""
    if made.role in ("whole", "nested"):
        return dtype == "float32"
    if made.role == "shape":
        return dtype in ("int64", "int32")
    if made.role == "zero":
        return dtype in ("int32", "uint32") if dict(made.facts).get("zeros_packed") else dtype == "int8"
    if made.role in ("scale", "bias"):
        return dtype == made.scale_dtype or (dtype == "uint8" and made.scale_dtype == EXPONENTS)
    types = dict(made.facts).get("type")  # of GGUF
    return types is None or ROUNDED.get(dtype) == types


def _computed_shape(made: Encoded) -> tuple[int, ...]:
    facts, shape = dict(made.facts), arranged_shape(made)
    if made.role == "codes":
        packing = packing_of(made)
        return (*shape[:-1], -(-shape[-1] * packing.items // packing.codes))
    groups = [-(-size // step) for size, step in zip(shape, made.steps, strict=True)]
    if made.role == "zero" and facts.get("zeros_packed"):
        axis = -int(facts["zeros_packed"])
        groups[axis] = -(-groups[axis] * int(facts["bits"]) // 32)
    elif made.role == "nested":
        groups[-1] = -(-groups[-1] // int(facts["nested"]))
    return tuple(groups)
