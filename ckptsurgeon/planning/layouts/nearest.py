"""Finds the layout that a state dict has in part: names of most of its keys, but not all that the layout needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ...tensors.info import TensorInfo
from ...util.text import count, listing
from .layout import Family, Layout, Tensors
from .recognise import families, known_keys, recognised

__all__ = ["NearLayout", "alone", "nearest", "prefix_of_all"]

_LEAST = 0.5
"""A layout is near if it has names for more than this share of the keys."""


_ALONE = {
    "encoder.encoders.0.layers.0.self_attn_weights.in_proj.weight": "icefall's Zipformer",
    "encoder.encoders.0.layers.0.self_attn.in_proj.weight": "icefall's first Zipformer (stateless7)",
}
"""{key of a network that only one library stores, in one layout: what it is}

https://github.com/k2-fsa/icefall/blob/master/egs/librispeech/ASR/zipformer/zipformer.py
"""


def alone(tensors: Tensors) -> str:
    """Return a text that names the network (``it is …``) if only one library stores it; '' if it is not known."""
    return next((f"it is {what}, which no other library stores" for key, what in _ALONE.items() if key in tensors), "")


@dataclass(frozen=True)
class NearLayout:
    """A layout that a state dict may have been meant to have.

    ``lacking`` are keys that every state dict in this layout has, and ``odd`` are keys without a name in it. ``named``
    is the number of keys with a name.
    """

    family: Family
    layout: Layout
    named: int
    lacking: tuple[str, ...]
    odd: tuple[str, ...]

    @property
    def text(self) -> str:
        """How the state dict differs from the layout, as the end of a sentence."""
        total = self.named + len(self.odd)
        said = f"it looks like the layout {self.layout.name} of {self.family.name}, which has names for {self.named} "
        said += f"of {count(total, 'key')}"
        wrong = [f"the file lacks {listing(self.lacking)}"] if self.lacking else []
        if self.odd:
            wrong.append(f"{listing(self.odd)} {'have' if len(self.odd) > 1 else 'has'} no name in it")
        if not wrong:
            wrong = ["the shapes are those of another network"]
        return f"{said}, but {', and '.join(wrong)}"


def nearest(tensors: Tensors) -> NearLayout | None:
    """Return the layout with names for the most keys of a state dict that no layout fits; None if none is near.

    Of layouts with names for equally many keys, the layout with the fewest missing marks is returned.
    """
    best: NearLayout | None = None
    for one in families():
        family = one.of(tensors) or one
        for layout in family.layouts:
            if layout.only_written or not any(mark in tensors for mark in layout.marks):
                continue
            known = known_keys(layout, tensors)
            lacking = tuple(mark for mark in layout.marks if mark not in tensors)
            if len(known) > len(tensors) * _LEAST and (best is None or _is_nearer(known, lacking, best)):
                odd = tuple(key for key in tensors if key not in known)
                best = NearLayout(family, layout, len(known), lacking, odd)
    return best


def _is_nearer(known: Collection[str], lacking: Collection[str], best: NearLayout) -> bool:
    """Return whether a layout has names for more keys than ``best``, or for as many but lacks fewer marks."""
    return (len(known), -len(lacking)) > (best.named, -len(best.lacking))


def prefix_of_all(tensors: Mapping[str, TensorInfo]) -> tuple[str, Family, Layout] | None:
    """Return the prefix that all keys have, such as ``net.``, if a layout is recognised without it; else None."""
    first = next(iter(tensors), "")
    parts = first.split(".")
    for number in range(1, min(len(parts), 8)):
        prefix = ".".join(parts[:number]) + "."
        if not all(key.startswith(prefix) for key in tensors):
            return None
        found = recognised({key[len(prefix) :]: info for key, info in tensors.items()})
        if found:
            return prefix, *found[0]
    return None
