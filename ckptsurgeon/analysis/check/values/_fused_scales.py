"""Finds wrong scales of weights that runtimes such as vLLM fuse into one: queries, keys and values; gate and up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import frexp, inf, log, pi, sqrt

from ....tensors.decoders._odd_scales import LARGEST
from ....tensors.encoders._schemes import JOINED
from ..measuring.figures import Figures
from ..subject import Subject

__all__ = ["APART", "shared_by_fused", "unlike_fused"]

NVFP4 = "nvfp4"
APART = 11
"""The smallest ratio of scales that is reported.

Exporters make the scales of fused modules equal; scales of other modules usually differ by less.
"""
FEWEST, MOSTLY = 2, 0.75
"""At least this many fused modules with one scale are needed; scales are reported if this share of them is wrong."""
TAIL = 0.65
"""Codes are judged only if the largest is over this share of the expected largest of normally distributed codes.

Otherwise, the weights were clipped, are uniformly distributed or have few values. Then all weights of a module may have
the largest code.
"""


def unlike_fused(subject: Subject, scales: Mapping[str, Figures]) -> list[str]:
    """Return the keys of global scales of nvfp4 that differ by a factor of over ``APART`` within a fused module.

    ``scales`` are the global scales of weights. For a fused module (such as queries, keys and values), vLLM uses only
    the largest of the scales. So weights with another scale are decoded too small or too large, by the ratio of both.
    """
    some = (key for key in scales if subject.methods.get(key) == NVFP4)
    found = (keys for keys in _fused(subject, some, scales) if _ratio([scales[key].low for key in keys]) > APART)
    return [key for keys in found for key in keys]


def shared_by_fused(subject: Subject, scales: Mapping[str, Figures]) -> list[str]:
    """Return the keys of scales that are equal within a fused module although its weights need different scales.

    The scale of a whole weight is chosen so that the largest value of the weight gets the largest code, 448 or 127. If
    all weights of a module get the largest of their scales and are quantised again, only one of them still has the
    largest code. If all weights have the largest code, they were not quantised again. The result is empty unless most
    fused modules with equal scales have this fault. Scales that are powers of two are not judged, because rounded
    scales are often equal. ``scales`` are scales of weights, not of activations, which fused modules may share.
    """
    equal = [
        keys
        for keys in _fused(subject, scales, scales)
        if len(keys) > 1 and _ratio([scales[key].low for key in keys]) == 1 and frexp(scales[keys[0]].low)[0] != 0.5
    ]
    found = [keys for keys in equal if all(_has_largest_code(subject, key) for key in keys)]
    return [key for keys in found for key in keys] if len(found) >= max(FEWEST, MOSTLY * len(equal)) else []


def _has_largest_code(subject: Subject, key: str) -> bool:
    """Return whether the codes of the scale ``key`` reach the largest code of their dtype, and only few codes do.

    The largest of ``n`` normally distributed numbers is about ``sqrt(2 * log(2 * n))`` times as large as their root
    mean square; for trained weights, this factor is usually larger.
    """
    parts = subject.by_weight.get(key.removesuffix(subject.parts.get(key, "")), {})
    for one in parts.values():
        if one in subject.codes and one in subject.measured and (figures := subject.measured[one].figures) is not None:
            largest = LARGEST.get(subject.tensors[one].dtype)
            if largest is None or figures.largest < (127 if largest == 128 else largest):
                return False
            return figures.largest > TAIL * sqrt(2 * log(2 * figures.number)) * _spread(figures)
    return False


def _spread(codes: Figures) -> float:
    """Return the root mean square of codes; the root mean square of integers is computed from the share of zeros.

    The share of normally distributed integers that are 0 is ``1 / sqrt(2 * pi)``, divided by their root mean square.
    """
    return codes.rms or (codes.number / codes.zeros / sqrt(2 * pi) if codes.zeros else inf)


def _fused(subject: Subject, keys: Iterable[str], scales: Mapping[str, Figures]) -> Iterator[list[str]]:
    """Yield a list of the keys of scales for each fused module; only scales of whole weights are used."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key in keys:
        outer, _, leaf = key.removesuffix(subject.parts.get(key, "")).rstrip(".").rpartition(".")
        joined = next((names for names in JOINED if leaf in names), None)
        if joined is not None and scales[key].number == 1 and scales[key].low > 0:
            groups.setdefault((outer, joined), []).append(key)
    yield from groups.values()


def _ratio(sizes: list[float]) -> float:
    return max(sizes) / min(sizes)
