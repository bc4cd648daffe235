"""No two weights are copies of each other, except tied weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_values
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

FEWEST = 64
"""Only weights with at least this many elements are compared: smaller weights may be equal by chance."""
ADVICE = "Repeated or tied layers are equal on purpose; otherwise one weight was written in place of the other."


def _run(subject: Subject) -> Iterator[Found]:
    alike: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    vocabulary = {*subject.embeddings, *subject.heads}
    for key, info, figures in subject.weights:
        digest = subject.measured[key].digest
        if digest and info.numel >= FEWEST and figures.low != figures.high and key not in vocabulary:
            alike[info.dtype, info.shape, digest].append(key)
    groups = [keys for keys in alike.values() if len(keys) > 1]
    if groups:
        pairs = [f"{escape(keys[-1])} = {escape(keys[0])}" for keys in groups]
        copies = tuple(key for keys in groups for key in keys)
        number = count(len(copies), "weight")
        said = f"{number} are equal to another weight, bit for bit: {listing(pairs, SHOWN)}"
        yield Found(Status.WARN, said, ADVICE, copies, figures={"tensors": len(copies), "groups": len(groups)})


CHECK = Check("duplicates", "no weight is a copy of another", _run, without_values)
