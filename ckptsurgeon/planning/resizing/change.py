"""What one field changes: operations on the source's tensors, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Change"]


@dataclass
class Change:
    """The operations that one field needs, and what else the transplant of the results needs.

    ``rows`` are operations on single keys, in order; ``after`` are operations on patterns, which follow. ``renamed``
    are rules for the results, and ``left`` are patterns of tensors that are left out. ``policies`` has the policy for
    shapes of keys whose rest is initialised. ``said`` is what was done; ``is_exact`` is true if the network computes
    the same afterwards, up to rounding, and None if this is not known; ``equal`` says which of its outputs are then the
    same. ``repeated`` has keys of initialised tensors of which each row is there so many times.
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

    def note(self, *, is_tested: bool) -> str:
        """Return what was done, and whether the network computes the same afterwards.

        ``is_tested`` is whether the tests compare the outputs of networks of this type.
        """
        if self.is_exact is None:
            return f"{self.said}; the outputs may change (--prove compares them)"
        stay = f"{self.equal} stay equal" if is_tested else f"{self.equal} should stay equal (--prove compares them)"
        return f"{self.said}; {stay if self.is_exact else 'the outputs change'}"
