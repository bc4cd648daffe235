"""The results for the moments of each parameter (kept, filled, estimated or lost), and the notes on it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ....planning.keys.spelling import numberless
from ....planning.resizing.gradients import FIRST, SECOND
from ....util.text import count, escape, grouped, together

__all__ = ["MomentsReport"]

_LOST = "{names} {are} {why}"
"""The part of a note on parameters that begin with a new state: the parameters, and the reason."""


@dataclass(frozen=True)
class MomentsReport:
    """The result for the moments in the file ``path``, for the ``parameters`` of the output.

    ``lost`` maps parameters that begin with a new state to the reason. ``filled`` are patterns of parameters with new
    elements, and ``estimated`` are patterns of those whose moments are estimates.
    """

    path: str
    parameters: Collection[str]
    lost: dict[str, str] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    estimated: dict[str, None] = field(default_factory=dict)

    def notes(self, kept: int, number: int, stored: Collection[str]) -> Iterator[str]:
        """Yield notes on kept, lost and estimated moments; ``kept`` of ``number`` parameters keep their moments.

        ``stored`` are the names of the moments in the source, such as ``exp_avg``.
        """
        name = escape(os.path.basename(self.path))
        yield f"the moments of {kept} of {count(number, 'parameter')} are those in {name}, changed as gradients change"
        if self.filled:
            values = ["a first moment of 0"] * any(one in stored for one in FIRST)
            values += ["second moments of others"] * any(one in stored for one in SECOND)
            filled = grouped([(one, "") for one in sorted(self.filled)], "{names}")
            yield f"new elements of {filled} begin with {' and '.join(values)}"
        if self.estimated:
            yield (
                f"the moments of {together(list(self.estimated))} are estimates: each copy of a head is given an equal "
                "share of the gradient, but different queries read the copies, so their gradients differ"
            )
        if self.lost:
            yield f"parameters that begin with a new state: {self.said_lost()}"

    def said_lost(self) -> str:
        """Return a text on parameters that begin with a new state: patterns of their names, grouped by the reason."""
        whys: dict[str, set[str]] = {}
        for name in self.parameters:
            whys.setdefault(numberless(name), set()).add(self.lost.get(name, ""))
        said = {(numberless(one) if len(whys[numberless(one)]) == 1 else one): why for one, why in self.lost.items()}
        return grouped(list(said.items()), _LOST)
