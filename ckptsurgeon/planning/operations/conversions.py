"""The conversions that ship with us, by name, and the recognition of what they are for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from ...tensors.info import TensorInfo
from ...util.text import count
from ..target import Recognise, Recognised
from . import coqui
from .conversion import Conversion

__all__ = ["CONVERSIONS", "layouts_known"]

CONVERSIONS: Mapping[str, Conversion] = {one.name: one for one in coqui.CONVERSIONS}


def layouts_known(destination: Collection[str]) -> Recognise | None:
    """Return what recognises another framework's layout of a destination of these keys, None where none is known."""
    fitting = [one for one in CONVERSIONS.values() if all(key in destination for key in one.gives)]
    return partial(_recognised, fitting) if fitting else None


def _recognised(conversions: Sequence[Conversion], source: Mapping[str, TensorInfo]) -> Recognised:
    for one in conversions:
        if one.converts(source):
            number = count(len(one.rows), "operation")
            said = f"the source is {one.said} ({number}, as --ruleset {one.name} has them)"
            return Recognised(operations=one.rows, notes=(said,))
    return Recognised()
