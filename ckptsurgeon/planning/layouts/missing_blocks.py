"""Finds a missing block in a network whose names depend on its structure, such as the number of its blocks.

Blocks are counted up to the first gap: the tensors of all later blocks have no names in the layout, although they are
right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count

from ...errors import PlanError
from ...util.text import escape, natural_key
from .incomplete_layers import FEW
from .layout import Layout, Tensors

__all__ = ["check_blocks"]

LISTS = ("block.", "blocks.", ".down.", ".layers.", "resnets.", ".up.")
"""The endings of the names of lists of blocks."""
_NUMBER = re.compile(r"(?<=\.)[0-9]{1,7}(?=\.)")


def check_blocks(unknown: Collection[str], layout: Layout, tensors: Tensors, label: str) -> None:
    """Raise PlanError if a numbered block of a network is missing, although later blocks are there.

    ``unknown`` are the keys in ``tensors`` without a name in ``layout``. ``label`` is the name of the checkpoint in
    messages; '' if the message needs no name.
    """
    where = f" from {escape(label)}" if label else ""
    gap = next(_gaps(frozenset(unknown), tensors), None) if unknown else None
    if gap is not None:
        raise PlanError(
            f"{escape(gap[0])} is missing{where}, although {escape(gap[1])} is there.", hint="Complete the model first."
        )
    for block in layout.lacking:
        is_partly_there = f"{block}.proj_in.weight" in tensors  # an attention without transformer blocks
        lost = f"{block}.transformer_blocks.0" if is_partly_there else block
        raise PlanError(
            f"{escape(lost)} is missing{where}, judging by the other blocks of the network.",
            hint="Complete the model first.",
        )


def _gaps(unknown: Collection[str], tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Yield (missing block, next block) for each gap in the numbers of blocks after which no block has a name.

    Other modules are numbered with gaps, as in a ``Sequential``. So the list of the blocks must have one of the names
    ``LISTS``, or another list with the same name must have a block with the missing number.
    """
    later, known = _numbers(unknown), _numbers(key for key in tensors if key not in unknown)
    alike: defaultdict[str, set[int]] = defaultdict(set)
    for block, numbers in known.items():
        alike[_NUMBER.sub("*", block)] |= numbers
    for block in sorted(later, key=natural_key):
        here = known.get(block, set())
        every = here | later[block]
        if max(every) >= 2 * len(every) + FEW:
            continue
        lost = next(number for number in count() if number not in every)
        after = min((number for number in later[block] if number > lost), default=lost)
        is_list = block.endswith(LISTS) or lost in alike[_NUMBER.sub("*", block)]
        if is_list and max(here, default=-1) < lost < after:
            yield f"{block}{lost}", f"{block}{after}"


def _numbers(keys: Iterable[str]) -> Mapping[str, set[int]]:
    """Return {beginning of keys before a number, such as ``blocks.``: the numbers that follow it}."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for key in keys:
        for match in _NUMBER.finditer(key):
            found[key[: match.start()]].add(int(match[0]))
    return found
