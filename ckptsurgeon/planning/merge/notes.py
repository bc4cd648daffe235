"""What is to be said of the tensors of a merge that were not merged as all others. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...util.text import count, listing
from .options import MergeOptions

__all__ = ["FITTED", "MergeNotes"]

FITTED = {"slice": "with their leading parts", "overlap": "where all have it"}
"""What becomes of other shapes by policy."""


@dataclass
class MergeNotes:
    """What is to be said at the end, with the keys it is about."""

    integers: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    nowhere: list[str] = field(default_factory=list)
    from_base: list[str] = field(default_factory=list)
    unbased: list[str] = field(default_factory=list)
    fewer: list[str] = field(default_factory=list)
    mixed: dict[str, list[str]] = field(default_factory=dict)
    """By the dtype that the output has."""
    fitted: dict[str, list[str]] = field(default_factory=dict)
    """By the policy that makes other shapes fit."""

    def said(self, options: MergeOptions) -> Iterator[str]:
        """Yield a note on each kind."""
        for keys, what in (
            (self.integers, f"not merged but taken by --int-buffers {options.int_buffers}"),
            (self.skipped, "left out, since not all models have it (--on-missing skip)"),
            (self.nowhere, "left out, since no model that it would be merged of has it"),
            (self.from_base, "counted as the base's where a model lacks it (--on-missing base)"),
            (self.unbased, "not in the base, and taken as it is in the one model that has it"),
            (self.fewer, "merged of fewer models than there are"),
            *(
                (keys, f"of several dtypes: the output has {made}, which holds all")
                for made, keys in self.mixed.items()
            ),
            *(
                (keys, f"of other shapes in some models, merged {FITTED[policy]} (--on-mismatch {policy})")
                for policy, keys in self.fitted.items()
            ),
        ):
            if keys:
                yield f"{count(len(keys), 'tensor')} {what}: {listing(keys)}"
