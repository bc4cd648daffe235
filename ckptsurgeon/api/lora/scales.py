"""Compares the scales (lora_alpha / r) of adapters: factors that are copied must have the same scale in the output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...destinations.hf.files import ADAPTER
from ...errors import CheckpointError, PlanError
from ...methods.lora.config import AdapterConfig, parse_config
from ...methods.lora.names import peft_key_parts
from ...planning.plan.plan import Plan
from ...util.text import escape
from ..model_folder.folder import ModelFolder
from .settings import other_settings

__all__ = ["with_scales_checked"]


def with_scales_checked(plan: Plan, folders: Sequence[ModelFolder], number: int) -> Plan:
    """Return the plan of a transplant with notes on source adapters whose settings differ from the destination's.

    ``folders`` are the folders of the sources, followed by the folder of the destination if there is one. ``number`` is
    the number of sources. Raises PlanError if factors from a source would get another scale in the output (lora_alpha
    divided by the rank, or by its square root with use_rslora).
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
    notes = other_settings(donor, [folders[source] for source in sorted(taken)])
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _check_scales(one: ModelFolder, donor: ModelFolder, keys: Iterable[str]) -> None:
    ours, theirs = _config(donor), _config(one)
    if ours is None or theirs is None:
        return
    parts = [part for part in map(peft_key_parts, keys) if part is not None and part.part in ("A", "B")]
    names = dict.fromkeys(part.module for part in parts)
    apart = [name for name in names if ours.scale_of(name) != theirs.scale_of(name)]
    if apart:
        raise PlanError(
            f"the factors of {escape(apart[0])} are scaled by {theirs.scale_of(apart[0]):g} in the {ADAPTER} of "
            f"{escape(one.path)}, but by {ours.scale_of(apart[0]):g} in the {ADAPTER} of {escape(donor.path)}, which "
            "is copied to the output.",
            hint="Set lora_alpha (alpha_pattern, use_rslora) of the destination to that of the source, and make a new "
            "plan.",
            details=apart,
        )


def _config(folder: ModelFolder) -> AdapterConfig | None:
    """Return the LoRA configuration in a folder; None if it is missing, of another kind, or cannot be read."""
    try:
        return parse_config(folder.adapter, ADAPTER) if folder.adapter else None
    except CheckpointError:
        return None
