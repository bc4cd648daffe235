"""The change that a new value of a field of the configuration requires: operations on the source's tensors, a note."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Change"]


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

    def note(self, *, is_tested: bool) -> str:
        """Return the text of a note: the change, and whether the network then computes the same.

        ``is_tested`` is true if the tests compare the outputs of networks of this type.
        """
        if self.is_exact is None:
            return f"{self.said}; the outputs may change (--prove compares them)"
        stay = f"{self.equal} stay equal" if is_tested else f"{self.equal} should stay equal (--prove compares them)"
        return f"{self.said}; {stay if self.is_exact else 'the outputs change'}"
