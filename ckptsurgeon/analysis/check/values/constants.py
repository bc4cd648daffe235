"""Checks that no weight matrix has the same value everywhere.

Biases and buffers may have one value everywhere. So may a norm, if most norms with the same role do.
"""

from __future__ import annotations

from collections.abc import Iterator

from ....checkpoint.values.samples import NORM
from ..check import Check, of_keys, without_values
from ..report import Found, Status
from ..subject import Subject
from ..tensor_roles import families

__all__ = ["CHECK"]

ADVICE = "These weights were perhaps never initialised or loaded: copy them from the source."
NORMS = (
    "These layers were perhaps never loaded or trained: if so, copy them from the source. This is normal for new "
    "layers that are not trained yet, such as those that ckpt transplant adds to a deeper model."
)
FEWEST, VALUES = 2, 8
"""A norm with the same value everywhere is reported only if it has at least ``VALUES`` values.

Also, at least ``FEWEST`` norms with the same role must have different values.
"""


def _run(subject: Subject) -> Iterator[Found]:
    found = [
        key
        for key, info, figures in subject.weights
        if figures.number == info.numel and figures.low == figures.high != 0
    ]
    if found:
        yield of_keys(
            Status.WARN,
            found,
            "has the same value in every element" if len(found) == 1 else "have the same value in every element",
            ADVICE,
        )
    if norms := [*_norms_unlike_others(subject)]:
        has = "has" if len(norms) == 1 else "have"
        yield of_keys(
            Status.WARN,
            norms,
            f"{has} the same value in every element, which the same norms of other layers do not have",
            NORMS,
        )


def _norms_unlike_others(subject: Subject) -> Iterator[str]:
    """Yield the norms with one value everywhere, if at least half of the norms of their role have different values.

    In a new model all norms are constant, and a training in 16 bits may change few of them. Norms of zeros are left
    out, because the check of zeros reports them.
    """
    ends = {
        key: (one.figures.low, one.figures.high)
        for key, info in subject.tensors.items()
        if len(info.shape) == 1 and info.numel >= VALUES and key not in subject.parts and NORM.search(key)
        and (one := subject.measured.get(key)) is not None and one.figures is not None
        and one.figures.number == info.numel
    }  # fmt: skip
    for keys in families(ends).values():
        constant = [key for key in keys if ends[key][0] == ends[key][1]]
        if len(keys) - len(constant) >= max(FEWEST, len(constant)):
            yield from (key for key in constant if ends[key][0])


CHECK = Check(
    "constants",
    "no weight matrix is constant, and norms are constant in all layers or in none",
    _run,
    without_values,
)
