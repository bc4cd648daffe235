"""Says that checkpoints store the same kind of network in different layouts, and how to convert one of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from ...util.text import escape
from .layout import Layout, Tensors
from .recognise import recognised

__all__ = ["differing_layouts_hint"]


class _Stored(NamedTuple):
    """The name of a checkpoint, and a layout that it may have."""

    name: str
    layout: Layout


def differing_layouts_hint(models: Iterable[tuple[str, Tensors]]) -> str:
    """Return a hint that says how to give two models one layout; '' if all models have the same layout, or none.

    ``models`` are the names and the tensors of the models. If possible, the hint gives the layout of the earlier one.
    """
    found = _differing(models)
    if found is None:
        return ""
    family, first, second = found
    kept, other = (first, second) if not first.layout.only_read else (second, first)
    if kept.layout.only_read:
        return f"{_said(family, first, second)}."
    return (
        f"{_said(family, first, second)}: first run ckpt convert {escape(other.name)} --layout {kept.layout.name} "
        "-o NAME.safetensors."
    )


def _said(family: str, first: _Stored, second: _Stored) -> str:
    return (
        f"{escape(first.name)} has the layout {first.layout.name} of {family}, {escape(second.name)} the layout "
        f"{second.layout.name}"
    )


def _differing(models: Iterable[tuple[str, Tensors]]) -> tuple[str, _Stored, _Stored] | None:
    """Return a family, and two models that store it in different layouts; None if all store it alike."""
    found = [(name, {family.name: layout for family, layout in recognised(tensors)}) for name, tensors in models]
    for (name, here), (other, there) in combinations(found, 2):
        both = [family for family in here if family in there]
        if both and all(here[family].name != there[family].name for family in both):
            return both[0], _Stored(name, here[both[0]]), _Stored(other, there[both[0]])
    return None
