"""Finds weights of nvfp4 that runtimes fuse, but whose global scales are far apart."""

from __future__ import annotations

from collections.abc import Mapping

from ....tensors.encoders._schemes import JOINED
from ..measuring.figures import Figures
from ..subject import Subject

__all__ = ["APART", "unlike_fused"]

NVFP4 = "nvfp4"
APART = 11
"""The smallest ratio of scales that is reported.

Exporters make the scales of fused modules equal; scales of other modules usually differ by less.
"""


def unlike_fused(subject: Subject, scales: Mapping[str, Figures]) -> list[str]:
    """Return the keys of global scales of nvfp4 that differ by a factor of over ``APART`` within a fused module.

    ``scales`` are the global scales of weights. For a fused module (such as queries, keys and values), vLLM uses only
    the largest of the scales. So weights with another scale are decoded too small or too large, by the ratio of both.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key, one in scales.items():
        outer, _, leaf = key.removesuffix(subject.parts[key]).rstrip(".").rpartition(".")
        joined = next((names for names in JOINED if leaf in names), None)
        if joined is not None and subject.methods.get(key) == NVFP4 and one.number == 1 and one.low > 0:
            groups.setdefault((outer, joined), []).append(key)
    found = (keys for keys in groups.values() if _ratio([scales[key].low for key in keys]) > APART)
    return [key for keys in found for key in keys]


def _ratio(sizes: list[float]) -> float:
    return max(sizes) / min(sizes)
