"""What goes with codes: the settings of quantisation, and a word if some of their parts stay in other shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..checkpoint import SETTINGS, Checkpoint, settings_in
from ..plan import Plan
from ..text import count, listing

__all__ = ["parts_elsewhere", "with_settings"]


def parts_elsewhere(checkpoint: Checkpoint) -> list[str]:
    """Say of one shard which quantised tensors have parts in the others, where they stay."""
    if not checkpoint.codes:
        return []
    names = {one.name.removesuffix(".weight"): one.name for one in checkpoint.codes.tensors}
    found = {one for key in checkpoint.elsewhere if not key.endswith(".bias") for one in _stems(key) if one in names}
    split = [name for stem, name in names.items() if stem in found]
    if not split:
        return []
    return [f"other parts of {count(len(split), 'quantised tensor')} stay in the other shards: {listing(split, 3)}"]


def _stems(key: str) -> Iterator[str]:
    """Yield what a key could be a part of: it itself without its ending, and the modules around it."""
    module, _, leaf = key.rpartition(".")
    yield module
    yield module.rpartition(".")[0]
    while "_" in leaf:
        leaf = leaf.rpartition("_")[0]
        yield f"{module}.{leaf}"


def with_settings(plan: Plan, opened: Sequence[Checkpoint]) -> Plan:
    """Return a plan whose metadata hold the settings of quantisation of the codes that it copies.

    Codes that only these settings tell would be taken for numbers otherwise. ``opened`` are the sources of the plan.
    What a user said of that entry stays.
    """
    if "metadata" in plan.arguments and SETTINGS in plan.arguments["metadata"]:
        return plan
    coded = [one.codes.by_key for one in opened]
    if not any(coded):
        return plan
    inputs = (one for step in plan.steps for one in step.inputs if one.source < len(coded))
    places = {one.source for one in inputs if one.key in coded[one.source]}
    said = [found for place in sorted(places) if (found := opened[place].quantisation)]
    if not said or settings_in(plan.metadata) in said:
        return plan
    return replace(plan, metadata={**plan.metadata, SETTINGS: json.dumps(said[0])})
