"""What could have been meant: names that are near to one that is not there, and files with such names."""

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
CLEARLY_WORSE = 0.1
"""A name this much less alike than the best one (difflib's ratio) is not meant."""
LISTED = 20_000
COMPARED = 300
"""How many names of a folder are looked at, and how many of them are compared: difflib is slow, folders are large."""


def close_names(wanted: str, names: Iterable[str], most: int) -> list[str]:
    """Return up to three names nearest to ``wanted``, without those clearly further off than the best.

    At most ``most`` of them are compared letter by letter.
    """
    likely = heapq.nsmallest(most, names, key=lambda name: _unlike(wanted, name))
    near = difflib.get_close_matches(wanted, likely, n=NAMED, cutoff=ALIKE)
    ratio = {name: difflib.SequenceMatcher(None, wanted, name).ratio() for name in near}
    return [name for name in near if ratio[name] >= ratio[near[0]] - CLEARLY_WORSE]


def _unlike(wanted: str, name: str) -> int:
    """Return how far two names are apart, as far as their lengths, beginnings and ends tell, which is quick."""
    return abs(len(wanted) - len(name)) - _common(wanted, name) - _common(wanted[::-1], name[::-1])


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def did_you_mean(path: str, otherwise: str = "") -> str:
    """Return the hint for a path that does not exist: what is near by name, then what to do ``otherwise``.

    It is ``otherwise`` alone where nothing is near, or the path is there.
    """
    near = _near(path) if not os.path.lexists(path) else []
    question = f"Did you mean {' or '.join(map(escape, near))}?" if near else ""
    return " ".join(filter(None, (question, otherwise)))


def _near(path: str) -> list[str]:
    """Return up to three paths that exist, and differ from ``path`` in the first of its names that does not."""
    folder, name = os.path.split(path.rstrip("/"))
    below: tuple[str, ...] = ()
    while folder.strip("/") and not os.path.lexists(folder):
        below = (name, *below)
        folder, name = os.path.split(folder)
    found = (os.path.join(folder, one, *below) for one in _alike(name, folder or "."))
    return list(islice((one for one in found if os.path.exists(one)), NAMED))


def _alike(name: str, folder: str) -> list[str]:
    """Return the names in a folder that are like ``name``, in capitals or not; last those with another suffix."""
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
    """Whether two names are alike without their suffixes, which of short names are most."""
    first, second = (os.path.splitext(name)[0].lower() for name in (one, other))
    return difflib.SequenceMatcher(None, first, second).ratio() >= ALIKE
