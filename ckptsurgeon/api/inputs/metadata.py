"""The user's entries of an output's metadata (``--set-metadata``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...errors import ConfigError
from ...formats._safetensors_layout import RECIPE_KEY
from ...planning.plan.plan import Plan

__all__ = ["check_metadata", "merged_metadata", "with_metadata"]


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise ConfigError if ``metadata`` contains the name of the entry in which ckptsurgeon stores the recipe."""
    if RECIPE_KEY in metadata:
        raise ConfigError(f"the name {RECIPE_KEY} in metadata is reserved for the recipe.", hint="Choose another name.")


def merged_metadata(carried: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata ``carried`` from a source, updated with the user's ``given`` entries; '' removes an entry."""
    return {name: value for name, value in {**carried, **given}.items() if value or name not in given}


def with_metadata(plan: Plan, given: Mapping[str, str]) -> Plan:
    """Return a plan whose output has the user's metadata; the entries are also recorded in the plan's arguments."""
    arguments = {**plan.arguments, "metadata": {**plan.arguments.get("metadata", {}), **given}}
    return replace(plan, metadata=merged_metadata(plan.metadata, given), arguments=arguments)
