"""Recognises the layout of a state dict by its keys and, if two libraries have the same names, by shapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from itertools import islice
from typing import cast

from ...util.registry import discover
from ..keys.renaming import KeyMatcher
from .changes import parsed
from .layout import Family, Layout, Tensors

__all__ = ["families", "known_keys", "layout_names", "recognised"]

SAMPLE = 512
"""Layouts are compared by about so many keys first: all keys of a large model with experts take half a second."""


@cache
def families() -> tuple[Family, ...]:
    """Return all families of networks whose layouts are known."""
    folders = (f"{__package__}.families", f"{__package__}.families.experts")
    found = {name: one for folder in folders for name, one in discover(folder, "FAMILY").items()}
    return tuple(cast("Family", found[name]) for name in sorted(found))


def layout_names() -> tuple[str, ...]:
    """Return the names of all layouts, sorted: the values of ``--layout``."""
    return tuple(sorted({layout.name for family in families() for layout in family.layouts}))


def recognised(tensors: Tensors) -> list[tuple[Family, Layout]]:
    """Return the layouts that a state dict may have: those with names for the largest number of its keys.

    The list is empty if no layout is recognised. It has several layouts if they have names for equally many keys; their
    names are then the same. If several of them are of one family and have one ``name``, only the first is returned.
    """
    fitting = [
        (family, layout)
        for one in families()
        if (family := one.of(tensors)) is not None
        for layout in family.layouts
        if all(mark in tensors for mark in layout.marks) and layout.fits(tensors)
        if not layout.only_written
    ]
    best = _with_most_names(fitting, _sample(tensors)) if len(fitting) > 1 else fitting
    best = _with_most_names(best, tensors) if len(best) > 1 else best
    return list({(family.name, layout.name): (family, layout) for family, layout in reversed(best)}.values())[::-1]


def _sample(keys: Collection[str]) -> Collection[str]:
    """Return all keys or, of very many, evenly spaced ones: most layouts differ in the keys of every layer."""
    return keys if len(keys) <= SAMPLE else list(islice(keys, 0, None, len(keys) // SAMPLE | 1))


def _with_most_names(fitting: Sequence[tuple[Family, Layout]], keys: Collection[str]) -> list[tuple[Family, Layout]]:
    """Return the layouts that have names for the largest number of ``keys``.

    Patterns that all layouts have in common make no difference. So only the other patterns are compared with the keys.
    """
    patterns = [frozenset(_patterns(layout)) for _, layout in fitting]
    odd = frozenset().union(*patterns) - patterns[0].intersection(*patterns)
    some = KeyMatcher([*map(parsed, sorted(odd))])
    keys = [key for key in keys if some.match(key)] if odd else []
    known = [len(known_keys(layout, keys)) for _, layout in fitting]
    return [pair for pair, number in zip(fitting, known, strict=True) if number == max(known)]


def known_keys(layout: Layout, keys: Collection[str]) -> set[str]:
    """Return the keys that a layout has names for."""
    matcher = KeyMatcher([*map(parsed, _patterns(layout))])
    return {key for key in keys if matcher.match(key)}


def _patterns(layout: Layout) -> dict[str, None]:
    """Return the patterns of the keys that a layout has names for, as an ordered set."""
    made = [change.made for change in layout.changes if change.made]
    return dict.fromkeys((*layout.names.values(), *made, *layout.left))
