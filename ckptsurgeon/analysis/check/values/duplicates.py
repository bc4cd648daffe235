"""Checks that no two weights are copies of each other, except tied weights, and that no part of a file is repeated.

A part of a file that repeats an earlier part is reported if it begins or ends in the middle of a row.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

from ....planning.transplant.by_place import vocabulary_keys
from ....tensors.info import TensorInfo
from ....util.text import count, escape, listing
from ..check import SHOWN, Check, without_values
from ..measuring.figures import Figures
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

FEWEST = 64
"""Only weights with at least this many elements are compared: smaller weights may be equal by chance."""
_ROUTER = re.compile(r"(?:^|\.)gate\.weight$|router.*weight$")
"""Matches the keys of the routers of experts."""
ADVICE = (
    "Check whether these weights should be equal, as in repeated or tied layers; if not, one was written in "
    "place of the other."
)

AGAIN = "Fetch or save this file again, or compare it with its source (ckpt diff --values)."


def _run(subject: Subject) -> Iterator[Found]:
    alike: dict[tuple[str, tuple[int, ...], str], list[str]] = defaultdict(list)
    vocabulary = {*subject.embeddings, *subject.heads}
    for key, info, figures in (*subject.weights, *_codes(subject, vocabulary), *_routers(subject)):
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
    yield from _repeats(subject)


def _repeats(subject: Subject) -> Iterator[Found]:
    """Yield a finding for each part of a file that repeats an earlier part, and begins or ends within a row."""
    for one in dict.fromkeys(one for measured in subject.measured.values() for one in measured.repeats):
        begin, end = one.begin - one.distance, one.end - one.distance
        said = (
            f"bytes {one.begin:,} to {one.end - 1:,} of {escape(one.file)} repeat bytes {begin:,} to {end - 1:,}, and "
            "begin or end in the middle of a row (was a part of a download written twice?): "
            f"{listing([escape(key) for key in one.keys], SHOWN)}"
        )
        figures = {"tensors": len(one.keys), "begin": one.begin, "bytes": one.end - one.begin, "distance": one.distance}
        yield Found(Status.WARN, said, AGAIN, one.keys, one.file, figures)


def _codes(subject: Subject, vocabulary: Collection[str]) -> Iterator[tuple[str, TensorInfo, Figures]]:
    """Yield (key, header, figures) of the codes of each quantised weight, except the weights of a vocabulary."""
    places = set[object]()
    for key in subject.measured:
        if key in subject.codes:
            info, figures = subject.tensors[key], subject.measured[key].figures
            place = key if info.place is None else info.place
            name = key.removesuffix(subject.parts.get(key, ""))
            is_of_tokens = vocabulary_keys([name, f"{name}.weight"]) or name in vocabulary
            if figures is not None and place not in places and not is_of_tokens:
                places.add(place)
                yield key, info, figures


def _routers(subject: Subject) -> Iterator[tuple[str, TensorInfo, Figures]]:
    """Yield (key, header, figures) of each router, unless half of the routers or more are copies of others.

    A mixture-of-experts model that was made from dense models may have equal routers in all layers until it is trained.
    """
    found = {key: one for key, one in subject.measured.items() if _ROUTER.search(key) and key not in subject.parts}
    times = Counter(one.digest for one in found.values() if one.digest)
    if 2 * sum(number - 1 for number in times.values()) < len(found):
        for key, one in found.items():
            if one.figures is not None and len(subject.tensors[key].shape) == 2:
                yield key, subject.tensors[key], one.figures


CHECK = Check("duplicates", "no weight is a copy of another", _run, without_values)
