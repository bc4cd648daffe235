"""The conversions that ship with us, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..tensors import TensorInfo
from . import coqui
from .conversion import Conversion

__all__ = ["CONVERSIONS", "conversion_for"]

CONVERSIONS: Mapping[str, Conversion] = {one.name: one for one in coqui.CONVERSIONS}


def conversion_for(source: Mapping[str, TensorInfo], destination: Collection[str]) -> Conversion | None:
    """Return the conversion that brings a source to a destination, None where none is needed or known."""
    return next((one for one in CONVERSIONS.values() if one.is_for(source, destination)), None)
