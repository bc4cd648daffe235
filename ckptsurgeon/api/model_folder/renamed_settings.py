"""Settings of quantisation that call modules by their names: they follow the names that a plan gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...planning.plan.plan import Plan
from ...tensors.encodings._modules import Modules, renamed_modules
from ...util.text import count, escape

__all__ = ["renamed_settings", "with_left_out_said"]


def renamed_settings(plan: Plan, place: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings of a source, in which the modules have the names that a plan gives them."""
    pairs = [(one.key, step.key) for step in plan.steps for one in step.inputs if one.source == place]
    if all(old == new for old, new in pairs):
        return settings
    names: dict[str, dict[str, None]] = {}
    for old, new in pairs:
        module, now = old, new
        while module and now and module.rpartition(".")[2] == now.rpartition(".")[2]:
            module, now = module.rpartition(".")[0], now.rpartition(".")[0]
            names.setdefault(module, {})[now] = None
    return renamed_modules(settings, lambda name: list(names.get(name, ())))


def with_left_out_said(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan of an edit that says which plain weights its settings leave out by their old names alone."""
    settings = checkpoint.quantisation if checkpoint.codes else {}
    if not settings or all(step.key == step.source_key for step in plan.steps):
        return plan
    before, now = Modules(settings), Modules(renamed_settings(plan, 0, settings))
    lost: dict[str, list[str]] = {}
    for step in plan.steps:
        if len(step.shape) == 2 and step.key.endswith(".weight") and step.source_key not in checkpoint.codes.by_key:
            by = before.left_out(step.source_key.removesuffix(".weight"))
            if by and not now.left_out(step.key.removesuffix(".weight")):
                lost.setdefault(by, []).append(step.key)
    notes = [
        f"the settings of quantisation leave {count(len(keys), 'tensor')} out by the old name alone, {escape(by)}: "
        f"{escape(keys[0])}"
        for by, keys in lost.items()
    ]
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan
