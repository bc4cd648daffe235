"""The user's choices for the vocabulary, and the change of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...planning.resizing.change import Change
from ...planning.transplant.vocabulary import VocabularyOptions
from ...vocabulary.replacement import NewVocabulary
from ..inputs.argument_types import Rules
from ..transplant.donor.choice import DonorChoice
from .arguments import at_path

__all__ = ["FIELD", "FILLED", "KEPT", "VocabularyChoices", "VocabularyStep", "field_of"]

FIELD = "vocab_size"
FILLED = ("init", "mean", "zero")
"""The ways to fill rows that have no token."""
KEPT = "the outputs for kept tokens"
"""In notes: the outputs that stay equal if rows of tokens are copied and all other rows are new or left out."""


@dataclass(frozen=True)
class VocabularyChoices:
    """The user's choices: the values of ``--tokenizer``, ``--pad-to``, ``--new-tokens`` and ``--token-map``.

    ``corpora`` are the files of ``--trim``; ``keeps_special`` is false with ``--no-keep-special``. ``donor`` and
    ``picks`` are the values of ``--donor`` and ``--omp-k``.
    """

    tokenizer: str = ""
    corpora: Sequence[str] = ()
    keeps_special: bool = True
    pad_to: int = 1
    new: str = "init"
    spelled: Rules = ()
    donor: str = ""
    picks: int | None = None


@dataclass(frozen=True)
class VocabularyStep:
    """The change of a vocabulary: new values of fields, options of the planner, and texts of notes.

    ``new`` is the vocabulary that replaces the source's; None if the tokens stay the same. ``lists`` are its files. If
    the rows of new tokens are made from another model, ``donor`` is this model.
    """

    fields: Mapping[str, Any]
    options: VocabularyOptions
    change: Change
    new: NewVocabulary | None = None
    lists: tuple[str, ...] = ()
    donor: DonorChoice | None = None


def field_of(base: Resizable) -> tuple[str, int]:
    """Return the path of the field with the number of rows, and its value; ("", 0) if there is none."""
    given = base.fields()
    names = (f"text_config.{FIELD}", base.main_name(FIELD))  # with a text_config, PaliGemma's own field has no effect
    path = next((name for name in names if type(at_path(given, name)) is int), "")
    return path, at_path(given, path) if path else 0
