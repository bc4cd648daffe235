"""Finds examples that two splits share."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping
from itertools import combinations

from ...util.text import count
from .sound import Clip

__all__ = ["clip_id", "overlap_notes"]


def clip_id(clip: Clip) -> Hashable:
    """Return what identifies a clip: the absolute path of its file, and its place in the file. No file is read."""
    return os.path.abspath(clip.path), clip.begin_s, clip.cell


def overlap_notes(splits: Mapping[str, Collection[Hashable]], name: str) -> list[str]:
    """Return a note for each two splits that share examples.

    ``splits`` has the examples of each split, in the order train, dev, test. ``name`` is what an example is called,
    such as clip.
    """
    notes = []
    for (earlier, known), (later, own) in combinations(splits.items(), 2):
        seen = set(known)
        both = sum(one in seen for one in own)
        if both:
            notes.append(
                f"{both} of {count(len(own), name)} of {later} {'is' if both == 1 else 'are'} also in {earlier}: "
                f"figures on {later} are too optimistic"
            )
    return notes
