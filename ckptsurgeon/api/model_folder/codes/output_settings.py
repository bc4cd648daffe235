"""Gives the output the quantisation settings of its codes, and checks that they decode all codes in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....checkpoint.quantisation import SETTINGS, settings_in
from ....planning.operations.markers import SCALE, is_marker
from ....planning.plan.plan import Plan
from ....planning.quantised_error import SettingsError, dequantise
from ....tensors.quantised.agreement import QuantisedModule, disagreements
from ....tensors.quantised.encoding import QuantisedTensor
from ....tensors.quantised.methods import is_known_by_settings
from ....util.text import count, escape
from ..config_fields import renamed_settings

__all__ = ["check_settings", "unsettled_notes", "with_settings"]


def with_settings(plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None) -> Plan:
    """Return a plan whose output has, in its metadata, the settings with which its quantised tensors are decoded.

    Without these settings, some codes would be read as plain numbers. ``opened`` are the sources of the plan, and
    ``owner`` is the index of the source whose settings are preferred. Settings that the user gave as metadata are kept.
    """
    if "metadata" in plan.arguments and SETTINGS in plan.arguments["metadata"]:
        return plan
    copied = _copied(plan, opened, owner)
    notes = [note for place in copied for note in _markers(plan, place, opened[place])]
    plan = replace(plan, notes=(*plan.notes, *notes)) if notes else plan
    settings = [renamed_settings(plan, place, found) for place in copied if (found := opened[place].quantisation)]
    if copied and owner is not None and (found := opened[owner].quantisation):
        settings = [found]
    if not settings or settings_in(plan.metadata) in settings:
        return plan
    return replace(plan, metadata={**plan.metadata, SETTINGS: json.dumps(settings[0])})


def _copied(plan: Plan, opened: Sequence[Checkpoint], owner: int | None) -> dict[int, list[QuantisedTensor]]:
    """Return {index of a source: its quantised tensors that the output has too}; ``opened`` are the plan's sources.

    The plan copies these tensors. If the plan computes a weight and quantises it again, the quantised tensor of the
    same name counts as a tensor of the source at index ``owner``.
    """
    coded = [one.codes.by_key for one in opened]
    found: dict[int, dict[int, QuantisedTensor]] = {}
    for step in plan.steps if any(coded) else ():
        if step.coded is not None:
            place = owner or 0
            found.setdefault(place, {})[id(coded[place][step.key])] = coded[place][step.key]
        for one in step.inputs:
            if one.source < len(coded) and (tensor := coded[one.source].get(one.key)) is not None:
                found.setdefault(one.source, {})[id(tensor)] = tensor
    return {place: list(found[place].values()) for place in sorted(found)}


def check_settings(
    plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None, given: Mapping[str, Any] | None = None
) -> None:
    """Raise SettingsError if the output's settings would decode quantised tensors differently than the source's.

    ``opened`` are the sources of the plan. ``owner`` is the index of the source whose settings the output gets; if it
    is None, this is the first source with quantised tensors. If the output gets the settings of a destination that is
    not a source, ``given`` are these settings.
    """
    copied = _copied(plan, opened, owner)
    settings: dict[int, Mapping[str, Any]] = {place: opened[place].quantisation for place in copied}
    first = next((place for place, stated in settings.items() if stated), None)
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
                raise SettingsError(
                    f"the quantisation settings of {other} do not apply to modules under their new names: {field} is "
                    f"{escape(theirs)} under the old name, {escape(here)} under the new one.",
                    hint="Do not rename these modules, or leave them out of the output.",
                    details=[one.name for one in tensors],
                )
            raise SettingsError(
                f"the quantised tensors of {other} would be decoded with the settings of {escape(name)}: {field} is "
                f"{escape(theirs)} in {other}, {escape(here)} in {escape(name)}.",
                hint=f"{dequantise(plan.verb)}; or leave out the quantised tensors of one model.",
                details=[one.name for one in tensors],
            )


def _decoded(plan: Plan, place: int, codes: Mapping[str, QuantisedTensor]) -> Iterator[QuantisedModule]:
    """Yield the quantised modules that a plan copies from the source at index ``place``, with their new names.

    ``codes`` maps each key of the source to the quantised tensor that it is a part of.
    """
    for step in plan.steps:
        for one in step.inputs:
            tensor = codes.get(one.key) if one.source == place else None
            if tensor is not None and one.key == (tensor.codes or tensor.keys[0]):
                end = next(end for end, key in tensor.parts.items() if key == one.key)
                stem = f".{step.key}".removesuffix(end)[1:]
                yield QuantisedModule.of(tensor.method, tensor.name, stem if step.key.endswith(end) else None)


def unsettled_notes(
    plan: Plan, opened: Sequence[Checkpoint], owner: int | None = None, given: Mapping[str, Any] | None = None
) -> list[str]:
    """Return notes on sources whose quantised tensors have no settings of their own and get the output's settings.

    ``owner`` is the index of the source whose settings the output gets, if there is one. ``given`` are the settings of
    a destination that is not a source. ``opened`` are the sources of the plan.
    """
    copied = _copied(plan, opened, owner)
    first = next(
        (place for place in (*([] if owner is None else [owner]), *copied) if opened[place].quantisation), None
    )
    if not given and first is None:
        return []
    name = escape(plan.target.name if given or first is None else plan.sources[first].name)
    told = {place: [one for one in tensors if is_known_by_settings(one)] for place, tensors in copied.items()}
    return [
        f"{escape(plan.sources[place].name)} has no settings for {count(len(tensors), 'quantised tensor')} of "
        f"{tensors[0].method}; loaders of the output use the settings of {name} for them"
        for place, tensors in told.items()
        if tensors and not opened[place].quantisation and (given or place != first)
    ]


def _markers(plan: Plan, place: int, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a note if a plan copies a source's scales but not its ``scaled_fp8``, without which ComfyUI ignores them.

    ``checkpoint`` is the source at index ``place``.
    """
    marker = next((key for key in checkpoint if is_marker(key)), None)
    if marker is None or any(is_marker(step.key) for step in plan.steps):
        return
    codes = checkpoint.codes.by_key
    taken = (one.key for step in plan.steps for one in step.inputs if one.source == place and one.key in codes)
    if any(f".{key}".endswith(SCALE) for key in taken):
        yield f"{escape(marker)} is left out: without it ComfyUI ignores the scales, and reads codes as plain numbers"
