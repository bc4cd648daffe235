"""Checks that few values of a weight are denormal: these have less precision and are slow on some processors."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import percent
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

MOST = 0.01
"""The allowed share of denormal values in dtypes other than float16."""
MOST_OF_HALVES = 0.5
"""The allowed share of denormal values in float16. It is large, because float16 values below 6e-5 are denormal."""


def _run(subject: Subject) -> Iterator[Found]:
    shares = {
        key: share
        for key, info, figures in subject.weights
        if (share := figures.denormals / max(1, info.numel - figures.zeros))
        > (MOST_OF_HALVES if info.dtype == "float16" else MOST)
    }
    if shares:
        most = max(shares.values())
        said = f"{'has' if len(shares) == 1 else 'have'} up to {percent(most)} of denormal values"
        todo = "Such values often come from underflow: check the weights' scale, or store them as bfloat16 or float32."
        yield of_keys(Status.WARN, list(shares), said, todo, share=round(most, 4))


CHECK = Check("denormals", "few values are denormal", _run, without_values)
