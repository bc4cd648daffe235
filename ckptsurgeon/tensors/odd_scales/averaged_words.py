"""Decides whether the packed words of a quantised model are averages of the words of several models.

In averages, the highest code in each word has another spread (standard deviation) than the other codes:
``tensors/decoders/_code_places.py`` measures the difference for each tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import fsum

__all__ = ["AVERAGED", "SPREAD", "averaged_names"]

SPREAD = "spread^"
"""The beginning of kinds such as ``spread^-0.1``; the number is the measured difference between the spreads."""
FAR, FEWEST, MOSTLY = 0.02, 6, 0.75
"""Words are averages if the difference in spread is on average farther than ``FAR`` from 0.

In addition, there must be at least ``FEWEST`` tensors, and more than the share ``MOSTLY`` of them must have a
difference of the same sign.

In averages of a model and its fine-tuned version, the mean is -0.03 (nf4) or -0.04 to -0.3 (words of 32 bits), and 89 %
of the tensors or more have its sign. In quantised models, the difference is 0 in at least 95 % of the tensors. Averages
of unrelated models may show nothing if words are signed, as in GPTQ.
"""
AVERAGED = (
    "packed words or bytes whose highest code has another spread than all their lower codes: perhaps those of two "
    "models were averaged as plain numbers"
)


def averaged_names(every: Iterable[Mapping[str, Collection[str]]]) -> set[str]:
    """Return the tensors whose packed words seem to be averages; an empty set unless most tensors seem to be averages.

    Each map in ``every`` has names of tensors by kind. A kind such as ``spread^-0.1`` contains the number that was
    measured for the tensor.
    """
    found: dict[str, list[float]] = {}
    for one in every:
        for kind, names in one.items():
            if kind.startswith(SPREAD):
                for name in names:
                    found.setdefault(name, []).append(float(kind.removeprefix(SPREAD)))
    spreads = {name: fsum(some) / len(some) for name, some in found.items()}
    mean = fsum(spreads.values()) / max(len(spreads), 1)
    alike = {name for name, one in spreads.items() if one * mean > 0}
    return alike if abs(mean) > FAR and len(alike) > MOSTLY * len(spreads) >= MOSTLY * FEWEST else set()
