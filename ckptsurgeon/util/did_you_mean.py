"""Suggests existing names and files that are similar to a name that does not exist."""

from __future__ import annotations

import difflib
import heapq
import os
from collections.abc import Iterable
from itertools import islice

from .text import escape

__all__ = ["close_names", "did_you_mean"]

NAMED = 3
ALIKE = 0.6
"""The smallest similarity (difflib's ratio) of a name that is suggested."""
CLEARLY_WORSE = 0.1
"""A name is not suggested if it is less similar than the most similar name by more than this."""
LISTED = 20_000
COMPARED = 300
"""At most ``LISTED`` names of a folder are read, and at most ``COMPARED`` of them compared, since difflib is slow."""


def close_names(wanted: str, names: Iterable[str], most: int) -> list[str]:
    """Return up to three names that are most similar to ``wanted``, the most similar one first.

    Names that are clearly less similar than the first are left out. To save time, only ``most`` names are compared
    letter by letter: the names that resemble ``wanted`` most in length, beginning and end.
    """
    likely = heapq.nsmallest(most, names, key=lambda name: _unlike(wanted, name))
    near = difflib.get_close_matches(wanted, likely, n=NAMED, cutoff=ALIKE)
    ratio = {name: difflib.SequenceMatcher(None, wanted, name).ratio() for name in near}
    return [name for name in near if ratio[name] >= ratio[near[0]] - CLEARLY_WORSE]


def _unlike(wanted: str, name: str) -> int:
    """Return a quick estimate of how different two names are, from their lengths, beginnings and ends."""
    return abs(len(wanted) - len(name)) - _common(wanted, name) - _common(wanted[::-1], name[::-1])


def _common(a: str, b: str) -> int:
    """Return the length of the common prefix of two strings."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def did_you_mean(path: str, advice: str = "") -> str:
    """Return a hint for a path that does not exist: "Did you mean …?" with similar paths, then ``advice``.

    ``advice`` is another sentence for the user. The question is left out if no path is similar, or if ``path`` exists.
    """
    near = _near(path) if not os.path.lexists(path) else []
    question = f"Did you mean {' or '.join(map(escape, near))}?" if near else ""
    return " ".join(filter(None, (question, advice)))


def _near(path: str) -> list[str]:
    """Return up to three existing paths that differ from ``path`` in only one component (file or folder name).

    This component is the first in ``path`` that does not exist.
    """
    folder, name = os.path.split(path.rstrip("/"))
    below: tuple[str, ...] = ()
    while folder.strip("/") and not os.path.lexists(folder):
        below = (name, *below)
        folder, name = os.path.split(folder)
    found = (os.path.join(folder, one, *below) for one in _alike(name, folder or "."))
    return list(islice((one for one in found if os.path.exists(one)), NAMED))


def _alike(name: str, folder: str) -> list[str]:
    """Return the names in a folder that resemble ``name``, ignoring case; names with another extension come last."""
    try:
        with os.scandir(folder) as entries:
            listed = [one.name for one in islice(entries, LISTED)]
    except OSError:
        return []
    names = sorted(one for one in listed if name[:1] == "." or not one.startswith("."))
    by_lower = {one.lower(): one for one in names}
    stem = os.path.splitext(name)[0]
    close = [by_lower[one] for one in close_names(name.lower(), by_lower, COMPARED) if _are_stems_alike(name, one)]
    return [*close, *(one for one in names if os.path.splitext(one)[0] == stem and one not in close)]


def _are_stems_alike(one: str, other: str) -> bool:
    """Return whether two file names are similar without their extensions.

    If extensions were compared too, any two short names with the same extension would count as similar. A stem of one
    letter would be similar to every stem of two letters that contains it.
    """
    first, second = (os.path.splitext(name)[0].lower() for name in (one, other))
    if len(first) == 1 or len(second) == 1:
        return first == second
    return difflib.SequenceMatcher(None, first, second).ratio() >= ALIKE
