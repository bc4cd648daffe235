"""The change that a new value of a field of the configuration requires: operations on the source's tensors, a note."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import frexp
from typing import Any

__all__ = ["ROUNDED", "Change"]

ROUNDED: Mapping[str, tuple[float, float]] = {"bfloat16": (0.012, 0.04), "float16": (0.0015, 0.005)}
"""{dtype of 16 bits: the largest relative differences of outputs that should be equal, in the tests}.

The first number is for weights that the change moves or multiplies by powers of two: only sums are rounded, in another
order. The second is for weights that are rounded after the change.
"""


@dataclass
class Change:
    """The operations for the new value of a field, and the options for transplanting their results.

    ``rows`` are operations on single keys, in order; ``after`` are operations on patterns, which follow. ``renamed``
    are rules that rename the results, and ``left`` are patterns of tensors that are left out. ``policies`` is for
    tensors that come only in part from the source: it maps their keys to the policy that initialises the rest. ``said``
    is the text of the note on the change. ``is_exact`` is true if the network computes the same afterwards, up to
    rounding, and None if this is not known; ``equal`` names the outputs that stay the same. ``repeated`` maps keys of
    initialised tensors to the number of copies of each row. ``unlike`` are the keys of tensors whose copies have
    different gradients, because different parts of the network read them.
    """

    said: str
    is_exact: bool | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    policies: dict[str, str] = field(default_factory=dict)
    equal: str = "the outputs"
    repeated: dict[str, int] = field(default_factory=dict)
    unlike: frozenset[str] = frozenset()

    def note(self, *, is_tested: bool, dtype: str = "", is_cast: bool = False) -> str:
        """Return the text of a note: the change, and whether the network then computes the same.

        ``is_tested`` is true if the tests compare the outputs of networks of this type. ``dtype`` is the dtype of the
        output's weights; ``is_cast`` is true if it has fewer bits than the dtype of the source's weights.
        """
        if self.is_exact is None:
            return f"{self.said}; the outputs may change (--prove compares them)"
        stay = f"{self.equal} {'' if is_tested else 'should '}stay equal{self._rounding(dtype, is_cast)}"
        if not is_tested:
            stay += " (--prove compares them)"
        return f"{self.said}; {stay if self.is_exact else 'the outputs change'}"

    def _rounding(self, dtype: str, is_cast: bool) -> str:
        """Return the words of a note on the rounding of weights, or of sums, to ``dtype``; "" if nothing is rounded."""
        sums, weights = ROUNDED.get(dtype, (0.0, 0.0))
        computed = [*self.rows, *(row for row in self.after if "copy" not in row and "zero" not in row)]
        if is_cast or (sums and any(map(_rounds, computed))):
            known = f" (a difference of up to {weights:.2g} in tests)" if weights else ""
            return f" up to the rounding of weights to {dtype}{known}"
        if sums and computed:
            return f" up to the rounding of sums in {dtype} (a difference of up to {sums:.2g} in tests)"
        return ""


def _rounds(row: Mapping[str, Any]) -> bool:
    """Return whether an operation computes weights that may need more than 16 bits, so that they have to be rounded.

    A multiplication by a power of two does not.
    """
    return ("scale" in row and frexp(row["by"])[0] != 0.5) or any(name in row for name in ("noise", "shift", "combine"))
