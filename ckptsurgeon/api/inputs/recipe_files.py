"""Reads recipe files (YAML), both of ckptsurgeon and of mergekit, and files of rules."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import CheckpointError, ConfigError, SourceError
from ...planning.keys.rules import rules_from_lines
from ...storage.small_files import read_text
from ...util.did_you_mean import did_you_mean
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import brief_repr, escape
from .argument_types import Path, rules_as_text

__all__ = ["VALUES_AGREE", "is_recipe", "read_recipe_file", "recipe_notes", "rules_of", "without_doubts"]

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


def rules_of(map_file: Path) -> list[str]:
    """Return the rules in the file of ``--map-file``.

    The file has one rule on each line, or it is a recipe with the field ``map``, as ``match`` writes it. Raises
    ConfigError if the file cannot be read or has no rules.
    """
    if is_recipe(map_file) and (found := _rules_of_recipe(os.fspath(map_file))):
        return found
    try:
        lines = read_text(map_file).split("\n")
        rules = rules_from_lines(lines, escape(os.fspath(map_file)))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"--map-file {escape(os.fspath(map_file))} cannot be read: {why}."
        raise ConfigError(message, hint=did_you_mean(os.fspath(map_file))) from error
    if not rules:
        raise ConfigError(
            f"--map-file {escape(os.fspath(map_file))} has no rules.", hint="Write one rule FROM=TO on each line."
        )
    return rules


def _rules_of_recipe(path: str) -> list[str]:
    """Return the rules in the field ``map`` of a recipe; [] if the file is not a recipe.

    Raises ConfigError for a recipe without this field.
    """
    try:
        document = read_recipe_file(path)
    except CheckpointError:  # it may be a list of rules in spite of its suffix
        return []
    rules = document.get("map") if isinstance(document, Mapping) else None
    if isinstance(rules, Mapping) or (isinstance(rules, list) and all(isinstance(rule, str) for rule in rules)):
        return rules_as_text(rules)
    if isinstance(document, Mapping) and ("verb" in document or "operations" in document):
        where = escape(path)
        raise ConfigError(f"{where} is a recipe without `map`: it has no rules.", hint="Leave --map-file out.")
    return []
