"""Checks that the index and the headers of its shards list the same tensors, each once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ....util.text import count, escape, listing
from ..check import SHOWN, Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "Save the whole model again, or correct the weight_map of the index."


def _run(subject: Subject) -> Iterator[Found]:
    places = subject.index.places if subject.index is not None else {}
    holders: dict[str, list[str]] = defaultdict(list)
    for shard in subject.shards:
        for key in sorted(shard.keys):
            holders[key].append(shard.name)
    read = {shard.name for shard in subject.shards if not shard.fault}
    lacking = [key for key, place in places.items() if place in read and place not in holders.get(key, ())]
    gone = [key for key in lacking if key not in holders]
    moved = [key for key in lacking if key in holders]
    orphans = [key for key in holders if places and key not in places]
    doubled = [key for key, names in holders.items() if len(names) > 1]
    index = escape(subject.index.name) if subject.index is not None else ""
    for keys, what in (
        (gone, f"in {index}, but in no shard"),
        (moved, f"in a different shard than {index} says"),
        (orphans, f"in a shard, but not in {index}"),
        (doubled, "in several shards"),
    ):
        if keys:
            said = f"{count(len(keys), 'tensor')} {what}: {listing([escape(key) for key in keys], SHOWN)}"
            file = "" if what.startswith("in several") or subject.index is None else subject.index.name
            yield Found(Status.FAIL, said, ADVICE, tuple(keys), file, {"tensors": len(keys)})


def _against(subject: Subject) -> str:
    return "" if subject.index is not None or len(subject.shards) > 1 else "it has no index"


CHECK = Check("index-keys", "index and headers list the same tensors", _run, _against)
