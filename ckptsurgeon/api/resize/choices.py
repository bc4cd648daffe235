"""The options of resize besides fields: layers, indices to keep, and how channels and width are added."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...planning.resizing.repeat import NO_NOISE, Noise
from .aligned_experts import ExpertAlignment
from .vocabulary_choices import VocabularyStep

__all__ = ["Choices"]


@dataclass(frozen=True)
class Choices:
    """The user's options besides fields: layers, indices to keep, and the ways to add channels and width.

    ``layers`` is the text of ``--layers``, and ``kept`` maps fields to indices. If experts are merged, ``merge`` is
    "similar" or the groups of experts as text, and ``alignment`` aligns their channels before, if the user wants this.
    ``vocabulary`` is the change of the vocabulary, if there is one.
    """

    layers: str = ""
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    new_channels: str = ""
    new_width: str = ""
    noise: Noise = NO_NOISE
    merge: str = ""
    alignment: ExpertAlignment | None = None
    by: str = ""
    influences: Callable[[int, Callable[[], Sequence[str]]], list[float]] | None = None
    """A function that returns the block influence of each layer, from statistics.

    Its arguments are the number of layers, and a function that returns the paths of the lists that change.
    """
    vocabulary: VocabularyStep | None = None
    lists: Callable[[str], Sequence[str]] = lambda _: ()
    """A function that returns the paths of the lists of layers whose length a field changes."""
