"""What shards are called: ``model-00001-of-00002.safetensors``, with numbers of any width, and their index.

transformers writes five digits. DeepSeek-V3 has ``model-00001-of-000163.safetensors``, Llama ``consolidated.00.pth``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import islice

__all__ = ["INDEX", "has_index", "lacking", "numbered", "shards_among", "shards_of"]

INDEX = ".index.json"
_NUMBERED = re.compile(r"(.*)[-_.]\d+[-_]of[-_](?!0*1(?!\d))\d+((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
"""One of one is the whole of it."""
_COUNTED = re.compile(r"(.*[-_.])(\d{1,7})([-_]of[-_])(\d{1,7})((?:\.[^.]*)*)", re.IGNORECASE | re.DOTALL)
_RANK = re.compile(r"(consolidated)\.\d+(\.[a-z]+)", re.IGNORECASE)
"""One of several such files is a rank's part; one alone is the model."""


def numbered(stem: str, suffix: str, *, any_case: bool = False) -> re.Pattern[str]:
    """Return what the names of an index's own shards match, whose index is ``<stem><suffix>.index.json``."""
    pattern = rf"{re.escape(stem)}-\d+-of-\d+{re.escape(suffix)}"
    return re.compile(pattern, re.IGNORECASE if any_case else 0)


def lacking(shards: Collection[str], most: int) -> tuple[list[str], int]:
    """Return which shards others count that are not among them, 2 of 2 beside 1 of 2: some names, and how many."""
    found = [match for name in shards if (match := _COUNTED.fullmatch(name))]
    have: dict[tuple[str, str, str], set[int]] = {}
    for head, number, of, total, suffix in (match.groups() for match in found):
        have.setdefault((head, of + total, suffix), set()).add(int(number))
    width = max((len(match[2]) for match in found), default=0)
    names: list[str] = []
    many = 0
    for (head, of, suffix), numbers in have.items():
        total = int(re.split(r"\D+", of)[-1])
        wanted = range(1, total + (0 not in numbers))  # numbers from 0 end before it
        many += len(wanted) - sum(number in wanted for number in numbers)
        missing = (number for number in wanted if number not in numbers)
        names += [f"{head}{number:0{width}d}{of}{suffix}" for number in islice(missing, most - len(names))]
    return names, many


def shards_of(name: str) -> int:
    """Return how many shards a file says that it is one of, 0 if it does not say so, or is the only one."""
    found = _COUNTED.fullmatch(name)
    return int(found[4]) if found and int(found[4]) > 1 else 0


def shards_among(names: Sequence[str]) -> set[str]:
    """Return the names of what is a part of a checkpoint, by its number."""
    ranks = {name: found.groups() for name in names if (found := _RANK.fullmatch(name))}
    several = Counter(ranks.values())
    return {name for name in names if _NUMBERED.fullmatch(name) or (name in ranks and several[ranks[name]] > 1)}


def has_index(shard: str, indexes: Collection[str]) -> bool:
    """Whether an index is there by the name that the one of a shard has; ``indexes`` are in lower case."""
    found = _NUMBERED.fullmatch(shard) or _RANK.fullmatch(shard)
    return found is not None and f"{found[1]}{found[2]}{INDEX}".lower() in indexes
