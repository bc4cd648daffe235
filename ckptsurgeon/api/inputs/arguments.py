"""Turns the arguments of verbs into sources, rules, metadata and plain data for recipes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint.opening import check_given, is_given, path_of
from ...errors import CheckpointError, ConfigError
from ...formats._safetensors_layout import RECIPE_KEY
from ...planning.keys.rules import rules_from_lines
from ...planning.plan.plan import Plan
from ...storage.read.spec import SourceSpec, parse_spec
from ...storage.small_files import read_text
from ...util.did_you_mean import did_you_mean
from ...util.text import brief_repr, escape
from .argument_types import Path, Rules, Sources
from .recipe_files import is_recipe, read_recipe_file

__all__ = [
    "check_metadata",
    "check_seed",
    "merged_metadata",
    "plain_arguments",
    "rules_as_text",
    "rules_of",
    "specs_of",
    "with_metadata",
]


def check_seed(seed: int) -> None:
    """Raise ConfigError if ``seed`` is not a whole number from 0 to 2^63 - 1."""
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError(
            f"--seed {brief_repr(seed, 40)} is not a valid seed.", hint="Use a whole number from 0 to 2^63 - 1."
        )


def rules_as_text(rules: Rules) -> list[str]:
    """Return rules as a list of strings FROM=TO; ``rules`` is one string, several strings, or a map from FROM to TO."""
    if isinstance(rules, Mapping):
        return [_rule(pattern, target) for pattern, target in rules.items()]
    return [rules] if isinstance(rules, str) else list(rules or ())


def _rule(pattern: str, target: str) -> str:
    if not isinstance(target, str):
        raise ConfigError(
            f"a rule renames {brief_repr(pattern)} to {brief_repr(target)}, which is not a string.",
            hint="Write a string; '' removes the pattern from the key.",
        )
    return f"{pattern}={target}"


def plain_arguments(**given: Any) -> dict[str, Any]:
    """Return the given options that differ from their defaults, as plain data for the recipe."""
    defaults = {"on_missing": "init", "strict": False, "new_tokens": "init", "encoding": "keep"}
    kept: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, (str, int, float, type(None))):
            plain: Any = value
        elif isinstance(value, Mapping):
            plain = dict(value)
        else:
            plain = list(value)
        if plain and plain != defaults.get(name):
            kept[name] = plain
    return kept


def rules_of(map_file: Path | None) -> list[str]:
    """Return the rules in a file; [] if ``map_file`` is None.

    The file has one rule on each line, or it is a recipe with the field ``map``, as ``match`` writes it. Raises
    ConfigError if the file cannot be read or has no rules.
    """
    if map_file is None:
        return []
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


def specs_of(source: Sources) -> list[SourceSpec]:
    """Return a SourceSpec for each source: its file, the module to read and the module to replace.

    Raises ConfigError if there is no source.
    """
    found = [source] if is_given(source) or not isinstance(source, Iterable) else list(source)
    if not found:
        raise ConfigError("no source given.", hint="Give at least one source.")
    return list(map(_spec, found))


def _spec(given: object) -> SourceSpec:
    if isinstance(given, (str, os.PathLike)):
        text = os.fspath(given)
        return parse_spec(text) if ":" in text else SourceSpec(text)
    check_given(given)
    return SourceSpec(path_of(given), given=given)


def check_metadata(metadata: Mapping[str, str] | None) -> None:
    """Raise ConfigError if ``metadata`` contains the name of the entry in which ckptsurgeon stores the recipe."""
    if RECIPE_KEY in (metadata or {}):
        raise ConfigError(f"the name {RECIPE_KEY} in metadata is reserved for the recipe.", hint="Choose another name.")


def merged_metadata(carried: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata ``carried`` from a source, updated with the user's ``given`` entries; '' removes an entry."""
    return {name: value for name, value in {**carried, **given}.items() if value or name not in given}


def with_metadata(plan: Plan, given: Mapping[str, str] | None) -> Plan:
    """Return a plan whose output has the user's metadata; the entries are also recorded in the plan's arguments."""
    if not given:
        return plan
    arguments = {**plan.arguments, "metadata": {**plan.arguments.get("metadata", {}), **given}}
    return replace(plan, metadata=merged_metadata(plan.metadata, given), arguments=arguments)
