"""Finds norms and biases of one layer that are zeros, unlike those of the other layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY, count, listing
from .non_finite import SmallSample
from .norm_weights import NORM

__all__ = ["BIAS", "MOSTLY", "unlike_layer_notes"]

BIAS = re.compile(r"[._/](?:bias|beta)$")
"""Matches the ends of the keys of biases."""
FEWEST, MOSTLY = 3, 3 / 4
"""The fewest other layers, and their share of all, that must agree."""


def unlike_layer_notes(
    tensors: Mapping[str, TensorInfo], sample: SmallSample, *, are_zeros_said: bool = False
) -> Iterator[str]:
    """Yield notes on the norms and biases in a sample that are zeros, unlike those of other layers.

    If ``are_zeros_said`` is true, another note already says that a part of the file is zeros: then there is no note on
    zeros here.
    """
    roles: dict[str, list[str]] = defaultdict(list)
    for key in sample.raw:
        if NORM.search(key) or BIAS.search(key):
            roles[NUMBER_IN_KEY.sub("#", key)].append(key)
    zeros = list[str]()
    for keys in roles.values():
        if len(keys) <= FEWEST:
            continue
        empty = [key for key in keys if not any(sample.raw[key])]
        if len(keys) - len(empty) >= max(FEWEST, MOSTLY * len(keys)):
            zeros += empty
    if zeros and not are_zeros_said:
        are = "is" if len(zeros) == 1 else "are"
        yield (
            f"{count(len(zeros), 'norm or bias', 'norms or biases')} {are} all zeros, unlike the same tensor of other "
            f"layers: {listing(zeros)}"
        )
