"""The user's entries of an output's metadata (``--set-metadata``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...errors import ConfigError
from ...formats._safetensors_layout import RECIPE_KEY
from ...planning.plan.plan import Plan
from ...util.text import escape, listing

__all__ = ["check_metadata", "merged_metadata", "removal_notes", "with_metadata"]

FORMAT = "format"
"""The entry that says for which framework a safetensors file is (``pt``)."""


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise ConfigError if ``metadata`` contains the name of the entry in which ckptsurgeon stores the recipe."""
    if RECIPE_KEY in metadata:
        raise ConfigError(f"the name {RECIPE_KEY} in metadata is reserved for the recipe.", hint="Choose another name.")


def merged_metadata(carried: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata ``carried`` from a source, updated with the user's ``given`` entries; '' removes an entry."""
    return {name: value for name, value in {**carried, **given}.items() if value or name not in given}


def removal_notes(carried: Mapping[str, str], given: Mapping[str, str]) -> Iterator[str]:
    """Yield notes on entries of ``given`` that are '', but remove no entry of the metadata ``carried``."""
    lacking = [name for name, value in given.items() if not value and name not in (*carried, FORMAT)]
    if lacking:
        entries = listing([f"{escape(name)}=" for name in lacking], where="")
        what = "these entries" if len(lacking) > 1 else "this entry"
        yield f"--set-metadata {entries} removes nothing: the output would not have {what}"
    if given.get(FORMAT) == "":
        yield f"--set-metadata {FORMAT}= leaves {FORMAT}=pt in safetensors files: transformers loads no others"


def with_metadata(plan: Plan, given: Mapping[str, str]) -> Plan:
    """Return a plan whose output has the user's metadata; the entries are also recorded in the plan's arguments."""
    arguments = {**plan.arguments, "metadata": {**plan.arguments.get("metadata", {}), **given}}
    notes = (*plan.notes, *removal_notes(plan.metadata, given))
    return replace(plan, metadata=merged_metadata(plan.metadata, given), arguments=arguments, notes=notes)
