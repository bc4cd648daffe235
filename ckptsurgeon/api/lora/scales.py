"""What the factors of an adapter count, which its adapter_config.json says: an error where they go beside another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...destinations.hf.files import ADAPTER
from ...errors import CheckpointError, PlanError
from ...methods.lora.config import AdapterConfig, parse_config
from ...methods.lora.names import peft_part
from ...planning.plan.plan import Plan
from ...util.text import escape, listing
from ..model_folder.folder import ModelFolder

__all__ = ["other_scales", "with_scales_checked"]

SCALES = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out")
"""What of an adapter's configuration says what its weights count."""


def other_scales(donor: ModelFolder, models: Iterable[ModelFolder]) -> list[str]:
    """Say which adapters count otherwise than the donor, whose configuration goes along."""
    notes = []
    ours = donor.adapter
    for one in [one for one in models if one.adapter] if ours else ():
        names = [name for name in SCALES if (one.adapter.get(name) or None) != (ours.get(name) or None)]
        if names:
            said = f"{ADAPTER} of {escape(one.path)} has another {listing(names)} than that of {escape(donor.path)}"
            notes.append(f"{said}, which is the one that goes along")
    return notes


def with_scales_checked(plan: Plan, folders: Sequence[ModelFolder], number: int) -> Plan:
    """Return the plan of a transplant with notes on adapters that count otherwise than the destination's.

    ``folders`` are those of ``number`` sources and of the destination, if it has one. Raises PlanError where factors of
    a source would be scaled as the destination's are, by another number.
    """
    donor = folders[-1]
    if len(folders) == number or not donor.adapter:
        return plan
    taken: dict[int, list[str]] = {}
    for step in plan.steps:
        if step.source is not None and step.source < number and step.op != "keep":
            taken.setdefault(step.source, []).append(step.key)
    for source, keys in taken.items():
        _check_scales(folders[source], donor, keys)
    notes = other_scales(donor, [folders[source] for source in sorted(taken)])
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _check_scales(one: ModelFolder, donor: ModelFolder, keys: Iterable[str]) -> None:
    ours, theirs = _config(donor), _config(one)
    if ours is None or theirs is None:
        return
    parts = [part for part in map(peft_part, keys) if part is not None and part.part in ("A", "B")]
    names = dict.fromkeys(part.module for part in parts)
    apart = [name for name in names if ours.scale_of(name) != theirs.scale_of(name)]
    if apart:
        raise PlanError(
            f"the factors of {escape(apart[0])} count {theirs.scale_of(apart[0]):g} by the {ADAPTER} of "
            f"{escape(one.path)}, and {ours.scale_of(apart[0]):g} by that of {escape(donor.path)}, which goes along.",
            hint="Set lora_alpha (alpha_pattern, use_rslora) of the destination to the source's, and plan again.",
            details=apart,
        )


def _config(folder: ModelFolder) -> AdapterConfig | None:
    """Return what a folder says of its adapter, None for one that is of another kind or not understood."""
    try:
        return parse_config(folder.adapter, ADAPTER) if folder.adapter else None
    except CheckpointError:
        return None
