"""The deviation of a weight is like that of the weights with its role in the other layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import log2

from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_values
from ..families import families
from ..report import Found, Status
from ..subject import Subject
from .huge_values import HUGE

__all__ = ["CHECK"]

FEWEST = 4
"""The fewest layers from which to tell which one is out of family."""
FACTOR = 3.0
"""Doublings of a deviation from the median of its family: 8 times larger or smaller."""
SPREADS = 8.0
"""Times the median distance from the median, in doublings: families that differ widely have no outlier."""
TODO = "Compare these layers with their source (ckpt diff --values): a wrong scale, another model, or a flipped bit."


def _run(subject: Subject) -> Iterator[Found]:
    stds = {key: one.std for key, _, one in subject.weights if one.std > 0 and one.largest <= HUGE}
    odd = {}
    for keys in families(stds).values():
        odd.update(_odd({key: stds[key] for key in keys}))
    if odd:
        told = [f"{escape(key)} has {std:.3g}, its family {usual:.3g}" for key, (std, usual) in odd.items()]
        said = f"the deviation of {count(len(odd), 'weight')} is out of family: {listing(told, SHOWN)}"
        worst = max((std / usual if std > usual else usual / std) for std, usual in odd.values())
        yield Found(Status.WARN, said, TODO, tuple(odd), figures={"tensors": len(odd), "factor": round(worst, 2)})


def _odd(stds: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Return the keys of outliers, with their deviation and the median of the family."""
    if len(stds) < FEWEST:
        return {}
    logs = {key: log2(std) for key, std in stds.items()}
    middle = median(logs.values())
    spread = median(abs(one - middle) for one in logs.values())
    most = max(FACTOR, SPREADS * spread)
    return {key: (stds[key], 2.0**middle) for key, one in logs.items() if abs(one - middle) > most}


def median(values: Iterable[float]) -> float:
    """Return the middle one of values, the upper one of two; ``statistics`` takes long to import."""
    found = sorted(values)
    return found[len(found) // 2]


def _looks_at(subject: Subject) -> str:
    found = [keys for keys in families(key for key, *_ in subject.weights).values() if len(keys) >= FEWEST]
    return count(len(found), "role")


CHECK = Check("value-family", "weights deviate like those of other layers", _run, without_values, _looks_at)
