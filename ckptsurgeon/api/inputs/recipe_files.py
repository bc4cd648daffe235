"""Reads recipe files (YAML), both of ckptsurgeon and of mergekit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ...errors import ConfigError, SourceError
from ...storage.small_files import read_text
from ...util.did_you_mean import did_you_mean
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import brief_repr, escape
from .argument_types import Path

__all__ = ["VALUES_AGREE", "is_recipe", "read_recipe_file", "recipe_notes", "without_doubts"]

VALUES_AGREE = "values_agree"
"""A field of a recipe, true if ``match --values`` wrote the recipe: values show which matrices are transposed."""

MOST_NOTES, LONGEST_NOTE = 16, 1000
"""The largest number of notes in a recipe, and the largest number of characters in a note."""


def is_recipe(path: Path) -> bool:
    """Return whether a path has the suffix of a recipe."""
    return os.fspath(path).lower().endswith((".yaml", ".yml"))


def read_recipe_file(path: str) -> Any:
    """Return the parsed YAML of a recipe; raises SourceError if it cannot be read, ConfigError if it is invalid."""
    try:
        from ...storage.yaml_text import read_yaml  # imports yaml, which most commands do not need

        return read_yaml(read_text(path), os.path.basename(path))
    except OSError as error:
        message = f"the recipe {escape(path)} cannot be read: {error.strerror}."
        raise SourceError(message, hint=did_you_mean(path)) from error
    except UnicodeDecodeError:
        raise ConfigError(
            f"{escape(path)} is not a valid recipe: the file is not UTF-8 text.", hint="Save the file as UTF-8."
        ) from None


def recipe_notes(name: str, value: Any) -> list[str]:
    """Return the notes in the recipe ``name``, with an escape for each character that a terminal may obey.

    ``value`` is the field ``notes`` of the recipe. Raises ConfigError if it is not a list of a few short strings.
    """
    is_valid = isinstance(value, list) and all(isinstance(one, str) and len(one) <= LONGEST_NOTE for one in value)
    if not is_valid or len(value) > MOST_NOTES:
        raise ConfigError(
            f"{escape(name)}: the field notes is {brief_repr(value, 80)}, not a list of at most {MOST_NOTES} strings "
            f"of at most {LONGEST_NOTE} characters."
        )
    return [escape(one, LONGEST_NOTE) for one in value]


def without_doubts(name: str, value: Any, notes: Sequence[str]) -> tuple[str, ...]:
    """Return ``notes``, the notes of a plan; if ``value`` is true, without those that say a matrix may be transposed.

    ``value`` is the field ``values_agree`` of the recipe ``name``; raises ConfigError if it is not a boolean.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{escape(name)}: the field {VALUES_AGREE} is {brief_repr(value)}, not true or false.")
    return tuple(one for one in notes if not (value and isinstance(one, Note) and one.kind is NoteKind.TRANSPOSED))
