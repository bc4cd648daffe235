"""The tensors that a transplant selects from its sources."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..plan.files import TensorOrigin

__all__ = ["ExcludedKey", "Selection"]


@dataclass(frozen=True)
class ExcludedKey:
    """A key of a source that was left out, and the option that excluded it."""

    source: int
    key: str
    why: str


@dataclass
class Selection:
    """The selected tensors of all sources, by their names in the destination.

    ``origins`` maps each name to the tensors that have it: at most one of each source, in the order of the sources.
    ``excluded`` has the excluded keys by the names that they would have had, ``excluded_keys`` is their number.
    """

    origins: dict[str, list[TensorOrigin]] = field(default_factory=dict)
    excluded: dict[str, list[ExcludedKey]] = field(default_factory=dict)
    excluded_keys: int = 0
    notes: list[str] = field(default_factory=list)
