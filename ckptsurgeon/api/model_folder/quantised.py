"""What goes with codes: the settings of quantisation, which must be theirs; a word if parts stay in other shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.quantisation import SETTINGS, settings_in
from ...errors import PlanError
from ...planning.plan.plan import Plan
from ...planning.quantised import DEQUANTISE
from ...tensors.encodings._agreement import Decoded, disagreements
from ...tensors.encodings._encoding import CodedTensor
from ...tensors.encodings._methods import is_known_by_settings
from ...util.text import count, escape, listing
from .config_fields import renamed_settings

__all__ = ["check_settings", "parts_elsewhere", "unsettled_notes", "with_settings"]

MARKER = "scaled_fp8"
"""What ComfyUI calls the tensor that says that there are scales."""


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


def with_settings(plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None) -> Plan:
    """Return a plan whose metadata hold the settings of quantisation of the codes that it copies.

    Codes that only these settings tell would be taken for numbers otherwise. ``opened`` are the sources of the plan,
    ``owner`` is as of ``check_settings``. What a user said of that entry stays.
    """
    if "metadata" in plan.arguments and SETTINGS in plan.arguments["metadata"]:
        return plan
    copied = _copied(plan, opened)
    notes = [note for place in copied for note in _markers(plan, place, opened[place])]
    plan = replace(plan, notes=(*plan.notes, *notes)) if notes else plan
    said = [renamed_settings(plan, place, found) for place in copied if (found := opened[place].quantisation)]
    if copied and owner is not None and (found := opened[owner].quantisation):
        said = [found]
    if not said or settings_in(plan.metadata) in said:
        return plan
    return replace(plan, metadata={**plan.metadata, SETTINGS: json.dumps(said[0])})


def _copied(plan: Plan, opened: Sequence[Checkpoint]) -> dict[int, list[CodedTensor]]:
    """Return the quantised tensors that a plan takes from each of its sources."""
    coded = [one.codes.by_key for one in opened]
    found: dict[int, dict[int, CodedTensor]] = {}
    for step in plan.steps if any(coded) else ():
        for one in step.inputs:
            if one.source < len(coded) and (tensor := coded[one.source].get(one.key)) is not None:
                found.setdefault(one.source, {})[id(tensor)] = tensor
    return {place: list(found[place].values()) for place in sorted(found)}


def check_settings(
    plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None, given: Mapping[str, Any] | None = None
) -> None:
    """Raise PlanError if codes of a plan would be decoded by other settings than those that they were made by.

    ``owner`` is the place of the source whose settings the output has; else it has those of the first whose codes it
    gets. ``given`` are those of a destination that is no source.
    """
    copied = _copied(plan, opened)
    settings: dict[int, Mapping[str, Any]] = {place: opened[place].quantisation for place in copied}
    first = next((place for place, said in settings.items() if said), None)
    if owner is not None and (found := opened[owner].quantisation):
        first, settings[owner] = owner, found
    ours = given or (settings[first] if first is not None else {})
    if first is not None and first != owner and not given:
        ours = renamed_settings(plan, first, ours)
    name = plan.target.name if given or first is None else plan.sources[first].name
    for place, tensors in copied.items():
        coded = _decoded(plan, place, opened[place].codes.by_key)
        for field, theirs, here in disagreements(coded, settings[place], ours):
            other = escape(plan.sources[place].name)
            if place == first and not given:
                raise PlanError(
                    f"the settings of quantisation of {other} do not fit the new names: {field} is {escape(theirs)}, "
                    f"and {escape(here)} by its new name.",
                    hint="Keep the names of these modules, or leave them out.",
                    details=[one.name for one in tensors],
                )
            raise PlanError(
                f"the codes of {other} would be decoded by the settings of {escape(name)}: {field} is "
                f"{escape(theirs)} in {other}, {escape(here)} in {escape(name)}.",
                hint=f"{DEQUANTISE[0].upper()}{DEQUANTISE[1:]}; or leave the quantised tensors of one out.",
                details=[one.name for one in tensors],
            )


def _decoded(plan: Plan, place: int, codes: Mapping[str, CodedTensor]) -> Iterator[Decoded]:
    """Yield the modules whose codes a plan takes from a source, with their names in the output."""
    for step in plan.steps:
        for one in step.inputs:
            tensor = codes.get(one.key) if one.source == place else None
            if tensor is not None and one.key == (tensor.codes or tensor.keys[0]):
                end = next(end for end, key in tensor.parts.items() if key == one.key)
                stem = f".{step.key}".removesuffix(end)[1:]
                yield Decoded.of(tensor.method, tensor.name, stem if step.key.endswith(end) else None)


def unsettled_notes(
    plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None, given: Mapping[str, Any] | None = None
) -> list[str]:
    """Say which codes have no settings of their own and are decoded by those of the output, as ``check_settings``."""
    copied = _copied(plan, opened)
    first = next(
        (place for place in (*([] if owner is None else [owner]), *copied) if opened[place].quantisation), None
    )
    if not given and first is None:
        return []
    name = escape(plan.target.name if given or first is None else plan.sources[first].name)
    told = {place: [one for one in tensors if is_known_by_settings(one)] for place, tensors in copied.items()}
    return [
        f"{escape(plan.sources[place].name)} has no settings of {count(len(tensors), 'quantised tensor')} of "
        f"{tensors[0].method}, which are decoded by those of {name}"
        for place, tensors in told.items()
        if tensors and not opened[place].quantisation and (given or place != first)
    ]


def _markers(plan: Plan, place: int, checkpoint: Checkpoint) -> Iterator[str]:
    """Say that the tensor is left out by which ComfyUI knows that a file has scales."""
    marker = next((key for key in checkpoint if key.rpartition(".")[2] == MARKER), None)
    if marker is None or any(step.key.rpartition(".")[2] == MARKER for step in plan.steps):
        return
    codes = checkpoint.codes.by_key
    taken = (one.key for step in plan.steps for one in step.inputs if one.source == place and one.key in codes)
    if any(f".{key}".endswith(".scale_weight") for key in taken):
        yield f"{escape(marker)} is left out, without which ComfyUI does not use the scales: it takes codes for numbers"
